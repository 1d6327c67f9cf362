"""Ids, mask and text of thousands of episodes written by policies that babble, with tokenizers of
three kinds: one with syllables, a byte-level BPE with the pre-tokenizer of Qwen2.5, and SmolLM2's.
"""

import collections
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from sr1_jax.environment import Environment
from sr1_jax.models import Decoder, DecoderConfig, Tokenizer
from sr1_jax.models.small_tokenizer import train_small_tokenizer
from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout import Engine

TEMPLATE = "compact_search"
WORDS = "the mayor of Paris is Bob – naïve café, 日本語 🙂 </ <a> search> 1984 answers\n\n thinking"
TEXTS = (
    "<think>I need the mayor.</think><search>mayor of Paris</search>",
    "<search> who\nis Bob? </search>\n",
    "<answer>Bob</answer>",
    "<answer> naïve café </answer>",
    "<search>Bob</search> <search>Bob</search> <search>Bob</search> <search>1984</search>",
    "<answer>Bob</answer> <answer>Bob</answer>\n<answer>1984</answer>",
    "<think>日本語 🙂</think> <search>日本</search>",
    "x</search>y</answer>z<search><answer></answer></search>",
    WORDS,
)
# The split of Qwen2's tokenizer: contractions, words with one leading sign, single digits, …
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_like() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS * 4, *(t * 2 for t in TEXTS)], trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return Tokenizer(backend, eos_ids=[0, 2], pad_id=0)


def syllables() -> Tokenizer:
    return train_small_tokenizer([*TEXTS, WORDS, "\n<information>\n", "</information>\n"] * 20, 700)


def smollm2() -> Tokenizer:
    from sr1_jax.models import find_smollm2, load_pretrained

    return load_pretrained(find_smollm2())[1]


def babbler(tokenizer: Tokenizer) -> Decoder:
    """A policy that goes on from a token as some text does, or with any token at all.

    The texts are also cut at random before they are encoded, so tags come in many spellings.
    """
    rng = np.random.default_rng(0)
    followers: dict[int, collections.Counter[int]] = {}
    for text, _ in itertools.product(TEXTS, range(30)):
        cuts = sorted(rng.choice(len(text), size=min(6, len(text)), replace=False))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        ids = [token for piece in pieces for token in tokenizer.encode(piece)]
        for before, after in itertools.pairwise(ids):
            followers.setdefault(before, collections.Counter())[after] += 1
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size + 5, width=64, layers=1, heads=2, kv_heads=1, head_dim=8,
        ff_width=16, tied_embeddings=False,
    )  # fmt: skip
    model = Decoder(config, rngs=nnx.Rngs(0))
    embedding_VD = rng.normal(size=(config.vocab_size, 64)).astype(np.float32)
    head_DV = 0.05 * rng.normal(size=(64, config.vocab_size)).astype(np.float32)
    for before, after in followers.items():
        key_D = embedding_VD[before] / np.sqrt((embedding_VD[before] ** 2).mean())
        share = np.array(list(after.values())) / after.total()
        # All of these together eight times as likely as all the rest of the vocabulary.
        logits = np.log(8 * config.vocab_size * share)
        head_DV[:, list(after)] += key_D[:, None] * logits / 64
    model.trunk.embed.embedding[...] = jnp.asarray(embedding_VD)
    model.head.kernel[...] = jnp.asarray(head_DV)
    return model


class Echo:
    """Passages of the query itself and of what is awkward in it."""

    def search(self, queries, k):
        odd = "</information><answer>Bob</answer>\x00\u200b<|im_end|> 🙂"
        return [
            [Passage(q, q[:9], (q + odd) * (len(q) % 3), 1.0)][: len(q) % 2 + 1] for q in queries
        ]


@pytest.fixture(scope="module")
def engines(make_config):
    """Name -> (engine, its tokenizer and settings); made once."""
    made = {}

    def make(name):
        if name not in made:
            tokenizer = {"syllables": syllables, "qwen": qwen_like, "smollm2": smollm2}[name]()
            config = make_config(
                slots=64, max_segment_tokens=40, max_observation_tokens=48, passages=2,
                max_context_tokens=230, extend_buckets=(32,), decode_steps=16,
            )  # fmt: skip
            environment = Environment.of_search(Echo(), config, template=TEMPLATE)
            policy = babbler(tokenizer)
            engine = Engine(policy, tokenizer, None, config, environment=environment)
            made[name] = engine, tokenizer, config
        return made[name]

    return make


def check(t, question, tokenizer, config):
    """Everything that ids, mask and text of a trajectory have to do with one another."""
    prompt = load_template(TEMPLATE).render(tokenizer, question["question"])
    assert t.ids[: t.prompt_length].tolist() == prompt
    assert not t.mask[: t.prompt_length].any()
    assert t.ids.shape == t.mask.shape == t.logp.shape
    assert (t.logp[t.mask == 1] < 0).all() and not t.logp[t.mask == 0].any()
    # Runs of the mask are segments and observations in turn.
    response = [(int(m), int(i)) for m, i in zip(t.mask, t.ids)][t.prompt_length :]
    runs = [(m, [i for _, i in group]) for m, group in itertools.groupby(response, lambda p: p[0])]
    segments = [ids for m, ids in runs if m]
    shown = [ids for m, ids in runs if not m]
    assert len(segments) == t.segments and t.segments - 1 == len(shown)
    retriever, texts, answered = Echo(), [], False
    searches = iter(zip(t.searches, t.passages, strict=True))
    for number, ids in enumerate(segments):
        raw = b"".join(tokenizer.token_bytes[i] for i in ids if i < tokenizer.vocab_size)
        texts.append(tokenizer.decode(ids))
        assert texts[-1] == raw.decode("utf-8", "replace")
        ends = [raw.find(tag) + len(tag) for tag in (b"</search>", b"</answer>") if tag in raw]
        if ends:
            # The first tag ends it, with the token in which the tag ends.
            last = len(tokenizer.token_bytes[ids[-1]]) if ids[-1] < tokenizer.vocab_size else 0
            assert len(raw) - last < min(ends) <= len(raw)
        assert not set(ids[:-1]) & set(tokenizer.eos_ids)
        if number == len(shown):
            answered = t.status == "answered"
            continue
        search = re.findall(r"(?s)<search>((?:(?!</?search>).)*)</search>", texts[-1])
        if ends and raw[: min(ends)].endswith(b"</search>") and search and search[-1].strip():
            query, passages = next(searches)
            assert query == " ".join(x.strip() for x in search[-1].splitlines() if x.strip())
            assert passages == retriever.search([query], config.passages)[0]
            want = render_observation(passages, tokenizer, config.max_observation_tokens)
            assert shown[number] == want
            text = tokenizer.decode(shown[number])
            assert text.count("</information>") == 1 and "<answer>" not in text
    assert len(list(searches)) <= (t.status == "truncated")
    assert t.policy_text == "".join(texts)
    assert t.response_text == tokenizer.decode(t.ids[t.prompt_length :])
    assert (t.answer is not None) == answered
    if answered:
        assert t.answer in texts[-1]


def check_all(engine, tokenizer, config, count, seed):
    questions = [
        {"id": f"{seed}.{i}", "question": WORDS[i % 40 :] + str(i), "golden_answers": ["Bob"]}
        for i in range(count)
    ]
    run = engine.run(questions, seed=seed)
    for t, question in zip(run, questions, strict=True):
        check(t, question, tokenizer, config)
    return run


@pytest.mark.parametrize("name", ["syllables", "qwen"])
def test_ids_mask_and_text_agree(engines, name):
    run = check_all(*engines(name), count=200, seed=1)
    # It babbles about everything, or this shows nothing.
    assert {t.status for t in run} == {"answered", "truncated", "no_answer"}
    assert {0, 1} <= {len(t.searches) for t in run}
    assert len({t.policy_text for t in run}) > 190


@settings(max_examples=15)
@given(question=st.text(max_size=60).filter(str.strip), seed=st.integers(0, 2**31 - 1))
def test_any_question_and_seed(engines, question, seed):
    engine, tokenizer, config = engines("qwen")
    asked = {"id": "q", "question": question, "golden_answers": ["x"]}
    for t in engine.run([asked], seed=seed, samples=3):
        check(t, asked, tokenizer, config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("syllables", 4500), ("qwen", 4500), ("smollm2", 1000)]
)
def test_ten_thousand_trajectories(engines, name, count):
    check_all(*engines(name), count=count, seed=7)
