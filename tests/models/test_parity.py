"""Numbers and ids equal to those of transformers (and of llama.cpp, where it is installed)."""

import math
import unicodedata

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from greedy_answers import greedy_answers

from sr1_jax.models import (
    find_smollm2,
    gguf_file,
    load_pretrained,
    parameter_count,
    save_pretrained,
)
from sr1_jax.models.cached_forward import forward_cached, next_token_logits
from sr1_jax.models.serving import KVCache, serving_params
from sr1_jax.protocol.prompts import in_chat, load_template

pytestmark = [
    pytest.mark.slow,
    # Raised inside the oracles.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 4}
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2}
PROSE = [
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "In 1601 the players of the Globe were asked to stage Richard II; the next day the Earl of "
    "Essex rode into London with three hundred men, found no support, and surrendered by night.",
    "Water boils at 100 degrees Celsius at sea level. On a mountain the pressure is lower, so it "
    "boils at a lower temperature, and an egg takes longer to cook.",
    "<|im_start|>user\nWho wrote Hamlet?<|im_end|>\n<|im_start|>assistant\nHamlet was written by "
    "William Shakespeare around 1600.<|im_end|>\n",
]
TEXTS = [
    *PROSE,
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\nnew\r\nlines\n\n\n  x",
    "1 12 123 1234 12345.678 3,141,592 -5 1e-9 0xFF",
    "It's we're I'LL they'd DON'T o'clock 'quoted'",
    "naïve café Zürich e\u0301 Ελληνικά Русский العربية עברית हिन्दी 日本語 한국어",
    "🙂🏽 👩‍👩‍👧 ∑∫√ ≠ → “quotes” — dashes… \u00a0\u2003\u200b\ufeff",
    "def f(x: int) -> int:\n    return x**2 if x != 0 else -1  # comment\n\n\nprint(f(3))",
    '{"key": [1, 2.5, null], "html": "<b class=\'x\'>&amp;</b>"} $HOME/bin ~ ^_^ ```a```',
    "<think>I should search.</think><search>who wrote Hamlet?</search>",
    "WORDSRUNTOGETHERandCamelCaseIdentifiers_with_underscores-and-hyphens",
]
# What transformers reads otherwise: it does not look at the file's pre-tokenizer, which sets every
# numeral apart, those beyond 0-9 included.
NUMERALS = "½ ² Ⅷ ٣٤ x²y a½"


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def smollm2():
    path = find_smollm2()
    return (path, *load_pretrained(path))


def _torch_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


@pytest.mark.parametrize(
    "family, changes",
    [
        ("Llama", LLAMA | {"tie_word_embeddings": True}),
        ("Llama", LLAMA | {"tie_word_embeddings": False}),
        ("Llama", GROUPED | {"tie_word_embeddings": False, "head_dim": 10}),
        ("Qwen2", GROUPED | {"tie_word_embeddings": True}),
        ("Qwen2", GROUPED | {"tie_word_embeddings": False}),
        ("Qwen3", GROUPED | {"tie_word_embeddings": True, "head_dim": 10}),
    ],
)
def test_logits_of_a_random_model(transformers, backend, tmp_path, family, changes):
    import torch

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=311,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=3,
        max_position_embeddings=128,
        eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
        **changes,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start out flat
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours, _ = load_pretrained(tmp_path)
    assert parameter_count(ours) == sum(p.numel() for p in model.parameters())
    ids = np.random.default_rng(0).integers(0, 311, (2, 50))
    want = _torch_logits(model, ids)
    assert want.std() > 0.5
    np.testing.assert_allclose(jax.jit(ours)(jnp.array(ids)), want, atol=2e-4)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500.0,
}  # fmt: skip


FAMILIES = pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("Llama", LLAMA3),
        ("Llama", {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        ("Qwen2", {"rope_type": "default", "rope_theta": 1e6}),
        ("Qwen3", {"rope_type": "default", "rope_theta": 1e6}),
        ("Mistral", {"rope_type": "default", "rope_theta": 1e4}),
    ],
)


def _write_random_model(transformers, backend, folder, family, rope):
    """In several shards; the model as transformers has it."""
    import torch

    torch.manual_seed(0)
    more = {"sliding_window": None} if family == "Mistral" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=311, hidden_size=48, intermediate_size=56, num_hidden_layers=3,
        max_position_embeddings=512, eos_token_id=0, rope_parameters=rope,
        tie_word_embeddings=False, **GROUPED, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="60KB")
    backend.save(str(folder / "tokenizer.json"))
    return model


@FAMILIES
def test_padding_and_cache(transformers, backend, tmp_path, family, rope):
    """Sequences of three lengths: each alone, padded in one batch, and in pieces by the cache."""
    model = _write_random_model(transformers, backend, tmp_path, family, rope)
    ours, _ = load_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    lengths, longest = (400, 57, 213), 400
    ids = rng.integers(0, 311, (3, longest))  # what is past the end of a row is padding
    want = [_torch_logits(model, ids[row : row + 1, :n])[0] for row, n in enumerate(lengths)]
    forward = jax.jit(ours)
    for row, n in enumerate(lengths):
        alone = forward(jnp.array(ids[row : row + 1, :n]))[0]
        np.testing.assert_allclose(alone, want[row], atol=2e-4)
    padded = forward(jnp.array(ids))

    config, params = ours.config, serving_params(ours.config, nnx.state(ours))
    cache = KVCache.empty(ours.config, 3, longest)

    @jax.jit
    def piece(cache, ids, positions):
        hidden_DBT, cache = forward_cached(config, params, ids, positions, cache)
        return next_token_logits(config, params, hidden_DBT.reshape(config.width, -1)).T, cache

    cached = np.zeros((3, longest, 311), np.float32)
    pieces = [(0, 50), (50, 51), (51, 52), (52, 300), *((i, i + 1) for i in range(300, 310)),
              (310, 400)]  # fmt: skip
    for first, last in pieces:
        positions = np.broadcast_to(np.arange(first, last), (3, last - first))
        outside = positions >= np.array(lengths)[:, None]
        at = jnp.array(np.where(outside, cache.positions, positions))
        logits, cache = piece(cache, jnp.array(ids[:, first:last]), at)
        cached[:, first:last] = np.asarray(logits).reshape(3, last - first, -1)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(padded[row, :n], want[row], atol=2e-4)
        np.testing.assert_allclose(cached[row, :n], want[row], atol=2e-4)


@FAMILIES
def test_round_trip_through_transformers(transformers, backend, tmp_path, family, rope):
    """Loaded, saved, loaded by transformers again; positions far beyond the original context."""
    import torch

    model = _write_random_model(transformers, backend, tmp_path / "in", family, rope)
    ours, tokenizer = load_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 311, (2, 400))
    want = _torch_logits(model, ids)
    np.testing.assert_allclose(jax.jit(ours)(jnp.array(ids)), want, atol=2e-4)
    save_pretrained(ours, tokenizer, tmp_path / "out", dtype="float32", shard_bytes=60_000)
    again, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(loading.values()), loading
    np.testing.assert_allclose(_torch_logits(again.eval(), ids), want, atol=1e-5)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert theirs("Hamlet 1601").input_ids == tokenizer.encode("Hamlet 1601")


def test_greedy_continuations_of_smollm2(transformers, smollm2):
    """Ten prompts, forty tokens each, by the rollout engine's own programs."""
    import torch

    path, model, tokenizer = smollm2
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype="float32"
    ).eval()
    prompts = [f"Question {i}: {text}" for i in range(5) for text in ("Why is", "The first")]
    answers = greedy_answers(
        model, tokenizer, prompts, template="compact_direct", slots=4, tokens=40, context=80,
        bucket=16,
    )  # fmt: skip
    for t in answers:
        start = torch.tensor([t.ids[: t.prompt_length].tolist()])
        with torch.no_grad():
            out = oracle.generate(
                start, max_new_tokens=40, do_sample=False, eos_token_id=list(tokenizer.eos_ids),
                pad_token_id=tokenizer.pad_id,
            )  # fmt: skip
        written = t.ids[t.prompt_length :]
        np.testing.assert_array_equal(out[0, t.prompt_length :][: len(written)].numpy(), written)
        assert len(written) == 40 or t.status != "truncated"


def test_next_token_log_probs_of_smollm2(transformers, smollm2):
    pytest.importorskip("accelerate")
    path, model, tokenizer = smollm2
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype="float32"
    ).eval()
    forward = jax.jit(lambda ids: jax.nn.log_softmax(model(ids)))
    longest = max(len(tokenizer.encode_trusted(text)) for text in PROSE)
    for text in PROSE:
        ids = tokenizer.encode_trusted(text)
        # NumPy sums one by one: in float32, 49,152 terms would lose the third decimal.
        logits = _torch_logits(oracle, [ids])[0].astype(np.float64)
        want = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        padded = jnp.array([ids + [tokenizer.pad_id] * (longest - len(ids))])
        got = np.asarray(forward(padded))[0, : len(ids)]
        np.testing.assert_allclose(got, want, atol=1e-3)
        # Prose, not noise: far likelier than a uniform guess over the vocabulary.
        assert got[np.arange(len(ids) - 1), ids[1:]].mean() > -math.log(tokenizer.vocab_size) / 2


def test_smollm2_answers_a_question(smollm2):
    _, model, tokenizer = smollm2
    ids = tokenizer.encode("The capital of France is")
    assert tokenizer.decode([int(model(jnp.array([ids]))[0, -1].argmax())]) == " Paris"


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_smollm2_equal_those_of_transformers(transformers_tokenizer, smollm2, text):
    _, _, tokenizer = smollm2
    want = transformers_tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.encode_trusted(text) == want
    if "<|" not in text:
        assert tokenizer.encode(text) == want
    assert tokenizer.decode(want) == transformers_tokenizer.decode(
        want, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def transformers_tokenizer(transformers):
    path = find_smollm2()
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def test_prompt_of_the_chat_template(transformers_tokenizer, smollm2):
    _, _, tokenizer = smollm2
    assert tokenizer.chat_template == transformers_tokenizer.chat_template
    assert tokenizer.eos_ids == (transformers_tokenizer.eos_token_id,)
    assert tokenizer.pad_id == transformers_tokenizer.pad_token_id


@pytest.mark.parametrize("name", ["search", "rag", "compact_search"])
def test_a_prompt_in_the_chat_template(transformers_tokenizer, smollm2, name):
    """As transformers renders and tokenises the same message."""
    _, _, tokenizer = smollm2
    template, question = load_template(name), "Who wrote Hamlet?"
    text = "".join(
        {"question": question, "information": "[facts]"}[part] if index % 2 else part
        for index, part in enumerate(template.parts)
    )
    want = transformers_tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    facts = tokenizer.encode("[facts]")
    ids = in_chat(template, tokenizer).render(tokenizer, question, facts)
    assert tokenizer._trusted.decode(ids, skip_special_tokens=False) == want


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "default", "qwen2", "llama-bpe"])
def test_ids_of_every_pre_tokenizer_equal_those_of_llama_cpp(tmp_path, pre):
    """The vocabulary of SmolLM2 under each rule. Qwen2's texts are in NFC, since its own
    tokenizer.json normalises and llama.cpp does not."""
    llama_cpp = pytest.importorskip("llama_cpp")
    metadata = gguf_file._Metadata(find_smollm2(), gguf.GGUFReader(find_smollm2()))
    tokens, types, merges = (
        metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
    )
    file = tmp_path / "vocabulary.gguf"
    _write_vocabulary(file, tokens, types, merges, pre)
    oracle = llama_cpp.Llama(model_path=str(file), vocab_only=True, verbose=False)
    ours = gguf_file._backend(tokens, types, merges, gguf_file._PRE_TOKENIZERS[pre])
    for text in [*TEXTS, NUMERALS, "a12345b ,.;:!? ($5) <= >=  `x`", "\x06 \U000f0000 |"]:
        text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        want = oracle.tokenize(text.encode(), add_bos=False, special=True)
        assert ours.encode(text, add_special_tokens=False).ids == want, text


def _write_vocabulary(file, tokens, types, merges, pre):
    """A GGUF file without tensors, with the settings that llama.cpp insists on."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
