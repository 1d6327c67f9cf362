"""Hugging Face folders: every value lands where it belongs, every bad file is refused by name."""

import dataclasses
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_checkpoints import CONFIG, FAMILIES, check_values, make_tensors, parameters

from sr1_jax.models import hf_folder, load_pretrained, weights
from sr1_jax.models.pretrained import read_model_files
from sr1_jax.sharding import make_mesh, tree_shardings

TEXT = "Who wrote Hamlet in 1601?"


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_round_trip(write_folder, family):
    folder, _, tensors = write_folder(model_type=family)
    model, tokenizer = load_pretrained(folder)
    check_values(model, tensors)
    assert (model.config.rope_theta, model.config.norm_eps) == (5000.0, 1e-5)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.eos_ids == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 2, 2), (1, 4, 2)], ids=str)
def test_a_folder_is_read_straight_into_the_mesh(write_folder, shape):
    folder, _, tensors = write_folder(model_type="qwen2")
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    model, _ = load_pretrained(folder, mesh=mesh)
    check_values(model, tensors)
    params = nnx.state(model)
    where = tree_shardings(params, mesh)
    assert jax.tree.map(lambda x: x.sharding, params) == where
    held = model.trunk.layers.ff.up.kernel[...].addressable_shards[0].data
    assert held.shape == (2, 16 // shape[1], 12 // shape[2])


@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "accelerator alone"])
def test_tensors_of_several_blocks(write_folder, monkeypatch, cpu):
    """Also where there is no CPU device to transpose for NumPy."""

    def local_devices(*, backend=None):
        if backend == "cpu" and not cpu:
            raise RuntimeError("Unknown backend cpu")
        return devices

    devices = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", local_devices)
    monkeypatch.setattr(hf_folder, "_BLOCK_BYTES", 300)
    monkeypatch.setattr(weights, "_STRIPE_COLUMNS", 5)
    folder, _, tensors = write_folder(model_type="qwen2")
    for mesh in (None, make_mesh(2, 2, 2)):
        check_values(load_pretrained(folder, mesh=mesh)[0], tensors)


def test_rows_that_this_process_does_not_hold_are_not_read(write_folder):
    """Of a kernel whose stored rows are split, the first and the last quarter are here."""
    folder, _, tensors = write_folder(model_type="qwen2")
    checkpoint = hf_folder.read_hf_folder(folder, dtype="float32", param_dtype="float32")
    asked = []

    def rows(name, first, last):
        asked.append((first, last))
        return checkpoint.rows(name, first, last)

    weight = next(w for w in checkpoint.family.weights if w.hf.endswith("down_proj.weight"))
    bounds = [((0, 2), (0, 12), span) for span in ((0, 4), (12, 16))]
    buffers = {b: np.empty([stop - start for start, stop in b], np.float32) for b in bounds}
    spy = dataclasses.replace(checkpoint, rows=rows)
    weights._fill(spy, weight, (2, 12, 16), buffers)
    assert sorted(asked) == [(0, 4), (0, 4), (12, 16), (12, 16)]
    for (_, _, span), filled in buffers.items():
        want = [tensors[weight.hf.format(layer)].T[:, slice(*span)] for layer in range(2)]
        np.testing.assert_array_equal(filled, want)


def test_a_folder_that_the_mesh_does_not_divide(write_folder):
    folder, _, _ = write_folder()
    with pytest.raises(ValueError, match=r"axis kv_heads of size 2 does not divide over 4 devices"):
        load_pretrained(folder, mesh=make_mesh(2, 1, 4))


def test_tied_config_accepts_an_equal_head_only(write_folder):
    tensors = make_tensors(CONFIG)
    tied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    folder, _, _ = write_folder(tie_word_embeddings=True, tensors=tied)
    model, _ = load_pretrained(folder)
    assert "head.kernel" not in parameters(model)
    write_folder(tie_word_embeddings=True, tensors=tensors)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_tensors_of_other_float_dtypes_are_converted(write_folder, dtype):
    tensors = {name: x.astype(dtype) for name, x in make_tensors(CONFIG).items()}
    model, _ = load_pretrained(write_folder(tensors=tensors)[0])
    check_values(model, {name: x.astype(np.float32) for name, x in tensors.items()})


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
    check_values(load_pretrained(folder)[0], tensors)
    _index(folder, tensors, split)
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "consolidated.safetensors")
    check_values(load_pretrained(folder)[0], tensors)  # the index says which files count


def test_missing_and_lying_shards(write_folder):
    folder, tensors, split = _two_shards(write_folder)
    swapped = dict(zip(split, reversed(split.values())))
    _index(folder, tensors, swapped)
    with pytest.raises(ValueError, match=r"index\.json: model\..*weight is not in model-\d\.safe"):
        load_pretrained(folder)
    _index(folder, tensors, split)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json: shards are missing.*model-2\.safetensors"):
        load_pretrained(folder)


@pytest.mark.parametrize("path", ["../outside.safetensors", "{tmp}/outside.safetensors"])
def test_shards_outside_the_folder_are_refused(write_folder, tmp_path, path):
    folder, _, tensors = write_folder()
    safetensors.numpy.save_file(tensors, folder.parent / "outside.safetensors")
    _index(folder, tensors, {path.format(tmp=folder.parent): tensors})
    with pytest.raises(ValueError, match=r"index\.json: weight_map\..* lies outside the folder"):
        load_pretrained(folder)


def test_a_path_through_a_link_out_of_the_folder_is_refused(write_folder):
    """A link itself may lead out, as in the cache of Hugging Face: its name is no path."""
    folder, _, tensors = write_folder()
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (folder / "model.safetensors").rename(elsewhere / "model.safetensors")
    (folder / "model.safetensors").symlink_to(elsewhere / "model.safetensors")
    _index(folder, tensors, {"model.safetensors": tensors})
    check_values(load_pretrained(folder)[0], tensors)
    (folder / "inside").symlink_to(elsewhere)
    _index(folder, tensors, {"inside/model.safetensors": tensors})
    with pytest.raises(ValueError, match="lies outside the folder"):
        load_pretrained(folder)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_is_no_finite_number(write_folder, dtype, value):
    tensors = {name: x.astype(dtype) for name, x in make_tensors(CONFIG).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][11, 3] = value
    folder, _, _ = write_folder(tensors=tensors)
    with pytest.raises(
        ValueError,
        match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight holds NaN, an",
    ):
        load_pretrained(folder)


def test_a_weight_too_large_for_the_parameters(write_folder):
    tensors = make_tensors(CONFIG)
    tensors["model.norm.weight"][3] = -1e5
    folder, _, _ = write_folder(tensors=tensors)
    load_pretrained(folder)
    with pytest.raises(ValueError, match=r"norm\.weight holds .* too large for float16"):
        load_pretrained(folder, param_dtype="float16")


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.integers(0, 5),
        elements={"allow_nan": True, "allow_infinity": True},
    )
)
def test_finite_numbers_are_told_by_their_bits(array):
    assert weights.fits(array, array.dtype) == np.isfinite(array).all()


def test_a_tensor_in_two_files_is_refused(write_folder):
    folder, _, tensors = write_folder()
    safetensors.numpy.save_file(tensors, folder / "again.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .* is in again\.safetensors too"):
        load_pretrained(folder)


def test_safetensors_cut_after_they_were_found_complete(write_folder):
    folder, _, _ = write_folder()
    checkpoint = read_model_files(folder)
    (file,) = folder.glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model\.safetensors: ends in the middle of model\."):
        weights.build(checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_cut_safetensors(write_folder, keep):
    folder, _, _ = write_folder()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a complete safetensors file"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "gemma2"},
            "'gemma2' is not supported; .* llama, mistral, qwen2, qwen3",
        ),
        ({"model_type": None}, r"config\.json: model_type=null must be a string"),
        ({"hidden_size": None}, r"config\.json: hidden_size=null must be a positive integer"),
        ({"hidden_size": "16"}, r'config\.json: hidden_size="16" must be a positive integer'),
        ({"num_attention_heads": 0}, r"num_attention_heads=0 must be a positive integer"),
        ({"num_attention_heads": 3}, r"heads=3 must be a multiple"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            r"config\.json: rope_scaling: rope type 'yarn' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            r"config\.json: the key 'rope_parameters\.low_freq_factor' is missing",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            r'rope_scaling\.factor="2" must be a positive number',
        ),
        (
            {"model_type": "mistral", "sliding_window": 4096},
            r"sliding_window=4096 must be null",
        ),
        ({"hidden_act": "gelu"}, r'hidden_act="gelu" must be "silu"; nothing else is supp'),
        ({"attention_bias": True}, r"attention_bias=true must be false"),
        ({"mlp_bias": True}, r"mlp_bias=true must be false"),
        ({"use_sliding_window": True}, r"use_sliding_window=true must be false"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=.* must be null"),
        ({"vocab_size": 256}, r"tokenizer has 290 ids, the embedding only 256 rows"),
        ({"eos_token_id": 999}, r"tokenizer\.json: Token id 999 lies outside"),
        ({"intermediate_size": 11}, r"mlp\.\w+_proj\.weight has shape .*asks for \[1[16], 1[16]\]"),
        ({"num_hidden_layers": 1}, r"no place in the model: model\.layers\.1\.input_layernorm"),
        (
            {"num_hidden_layers": 10**7},
            r"config\.json: the config asks for 10000000 layers, but .*",
        ),
        ({"num_hidden_layers": 10**10}, r"num_hidden_layers=10000000000 must be a positive int"),
        ({"hidden_size": True}, r"config\.json: hidden_size=true must be a positive integer"),
        ({"model_type": ["llama"]}, r'config\.json: model_type=\["llama"\] must be a string'),
        ({"eos_token_id": "end"}, r'config\.json: eos_token_id="end" must be a token id or a li'),
        ({"eos_token_id": [0, "end"]}, r"config\.json: eos_token_id=.* must be a token id"),
        ({"pad_token_id": {}}, r"config\.json: pad_token_id=\{\} must be a token id"),
        ({"rope_theta": None}, r"config\.json: rope_theta=null must be a positive number"),
        ({"rope_theta": float("inf")}, r"config\.json: rope_theta=Infinity must be a positive"),
        ({"rope_parameters": [1]}, r"config\.json: rope_parameters=\[1\] must be a JSON object"),
        ({"rope_scaling": "linear"}, r'config\.json: rope_scaling="linear" must be a JSON object'),
        ({"rope_scaling": {"type": 5}}, r"config\.json: rope_scaling\.type=5 must be a string"),
        ({"rms_norm_eps": "x"}, r'config\.json: rms_norm_eps="x" must be a positive number'),
        ({"rms_norm_eps": float("nan")}, r"config\.json: rms_norm_eps=NaN must be a positive"),
        ({"tie_word_embeddings": "no"}, r'config\.json: tie_word_embeddings="no" must be true or'),
        ({"head_dim": 7}, r"config\.json: DecoderConfig\.head_dim=7 must be even"),
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
        ("config.json", "[" * 10**5, r"config\.json: not valid JSON"),
        ("config.json", b"\xff{}", r"config\.json: not valid JSON"),
        ("tokenizer_config.json", '{"eos_token": 5}', r"tokenizer_config\.json: eos_token=5 must"),
        (
            "tokenizer_config.json",
            '{"pad_token": {"content": [1]}}',
            r"tokenizer_config\.json: pad_token\.content=\[1\] must be a string",
        ),
        ("tokenizer_config.json", '{"chat_template": {}}', r"chat_template=\{\} must be a string"),
        ("tokenizer_config.json", '{"chat_template": [1]}', r"chat_template=\[1\] must be a str"),
        ("generation_config.json", '{"eos_token_id": 1.5}', r"generation_config\.json: eos_token"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: not a text in UTF-8"),
        ("model.safetensors", None, r"no \*\.safetensors file.*pytorch_model\.bin"),
        ("model.safetensors.index.json", "{}", r"the key 'weight_map' is missing"),
        ("model.safetensors.index.json", '{"weight_map": []}', r"weight_map=\[\] must be a JSON o"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', r"weight_map\.a must be the"),
    ],
)
def test_missing_or_broken_files(write_folder, file, content, message):
    folder, _, _ = write_folder()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
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
    check_values(load_pretrained(folder)[0], tensors)
    more = {"score.weight": np.ones((1, 16), np.float32)}
    write_folder(tensors=tensors | more)
    with pytest.raises(ValueError, match=r"no place in the model: score\.weight\."):
        load_pretrained(folder)


def test_newer_configs_keep_the_rotary_base_in_ropeparameters(write_folder):
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
    assert tokenizer.eos_ids == (0, 4, 2, 3)  # the tokenizer's own first
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
