"""GGUF files: values, permutations, quantisation, tokenizers, and files to be refused."""

import gguf
import numpy as np
import pytest
from small_checkpoints import CONFIG, FAMILIES, check_values, make_tensors

from sr1_jax.models import gguf_file, load_pretrained
from sr1_jax.models.rotary import RopeScaling

TEXT = "Who wrote Hamlet in 1601?"


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
def test_gguf_round_trip(write_gguf, backend, family):
    """Llama's query and key rows come back from the interleaved order."""
    path, tensors = write_gguf(model_type=family)
    model, tokenizer = load_pretrained(path)
    check_values(model, tensors)
    assert model.config.rope_theta == 5000.0
    assert model.config.norm_eps == np.float32(1e-5)
    assert tokenizer.encode(TEXT) == backend.encode(TEXT).ids
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((0,), 1)
    assert tokenizer.encode_trusted("<|end|>") == [0]
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.vocab_size == backend.get_vocab_size() < model.config.vocab_size


def test_quantised_tensors_are_dequantised_by_block(write_gguf):
    """Q8_0: 32 weights share a step of max / 127, itself rounded to the 11 bits of float16."""
    name = "model.embed_tokens.weight"
    path, tensors = write_gguf(
        hidden_size=32, tensors=make_tensors(CONFIG | {"hidden_size": 32}), quantise={name}
    )
    got = np.asarray(load_pretrained(path)[0].trunk.embed.embedding[...])
    step = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
    assert np.abs(got - tensors[name]).max() > 0
    assert (np.abs(got - tensors[name]) <= (0.5 + 127 * 2.0**-11) * step).all()


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


def _scaling(name):
    return next(kind for kind in gguf.RopeScalingType if kind.value == name)


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


def test_rotary_factors_of_one_are_ignored(write_gguf):
    def edit(writer):
        writer.add_tensor("rope_freqs.weight", np.ones(3, np.float32))

    path, tensors = write_gguf(edit=edit)
    check_values(load_pretrained(path)[0], tensors)


def test_rotary_factors_of_llama_3(write_gguf):
    """Four waves of 6, 199, 6,283 and 198,692 positions: whole, whole, in between, by the factor.

    8,192 positions are 1.3038 of the third wave, so a share of .1013 of it is kept.
    """
    factors = np.array([1, 1, 1 / (0.1012655 + (1 - 0.1012655) / 8), 8], np.float32)

    def edit(writer):
        writer.add_tensor("rope_freqs.weight", factors)

    path, _ = write_gguf(edit=edit, head_dim=8, rope_theta=1e6)
    scaling = load_pretrained(path)[0].config.rope_scaling
    assert scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    factors[2] *= 1.01
    write_gguf(edit=edit, head_dim=8, rope_theta=1e6)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight scales .* not as Llama 3\.1"):
        load_pretrained(path)


def test_the_first_token_of_a_chat(write_gguf):
    path, _ = write_gguf(edit=lambda writer: writer.add_bos_token_id(1))
    tokenizer = load_pretrained(path)[1]
    assert (tokenizer.bos_token, tokenizer.prefix_ids) == ("<|pad|>", [])

    def edit(writer):
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(True)

    assert load_pretrained(write_gguf(edit=edit)[0])[1].prefix_ids == [1]
    path, _ = write_gguf(edit=lambda writer: writer.add_bos_token_id(999))
    with pytest.raises(ValueError, match=r"bos_token_id=999 lies outside its 300 tokens"):
        load_pretrained(path)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_rows_of_every_quantisation(write_gguf, kind):
    """Read in blocks of rows, queries out of their order: as the package dequantises the whole."""
    kind = gguf.GGMLQuantizationType[kind]
    tensors = make_tensors(CONFIG | {"hidden_size": 64})
    names = {n for n in tensors if n.endswith("q_proj.weight") or "embed" in n}
    path, _ = write_gguf(hidden_size=64, tensors=tensors, quantise=names, kind=kind)
    model, _ = load_pretrained(path)
    rounded = {
        n: gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind) if n in names else x
        for n, x in tensors.items()
    }
    check_values(model, rounded)


def test_unsupported_architecture_and_tokenizer_of_gguf(write_gguf):
    path, _ = write_gguf(model_type="gemma2")
    with pytest.raises(ValueError, match=r"general\.architecture: .*'gemma2' is not supported"):
        load_pretrained(path)
    path, _ = write_gguf(pre="tekken")
    with pytest.raises(ValueError, match=r"pre='tekken' is not supported; supported are gpt-2"):
        load_pretrained(path)
    path, _ = write_gguf(tokenizer_model="llama")
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
def test_words_of_the_gguf_pre_tokenizers(pre, text, words):
    """With every word in the vocabulary, tokens show where the text was cut."""
    vocab = [w.replace(" ", "Ġ").replace("\n", "Ċ") for w in dict.fromkeys(words)]
    rules = gguf_file._PRE_TOKENIZERS[pre]._replace(ignore_merges=True)
    backend = gguf_file._backend(vocab, [1] * len(vocab), [], rules)
    got = [token.replace("Ġ", " ").replace("Ċ", "\n") for token in backend.encode(text).tokens]
    assert got == words
