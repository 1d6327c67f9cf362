"""Traces as examples, and what a phase asks of them."""

import pytest

from sr1_jax.data.questions import Question
from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval.base import Passage
from sr1_jax.training.phases import phases_of
from sr1_jax.training.settings import default_config
from sr1_jax.training.supervised import Example
from sr1_jax.world.kinds import WORLDS
from sr1_jax.world.task import world_task
from sr1_jax.world.traces import Note, Trace
from sr1_jax.world.warm_start import encode_trace

MODES = ("search", "direct", "rag")
QUESTION = Question("world:train:0", "Where was Ann born?", ("Bo",))
PASSAGES = [Passage("1", "Ann", "Ann was born in Bo.", 2.0)]
READ = dict(name="read", steps=1, traces=60, learning_rate=1e-3, mix={"two_hop": 0.0})


@pytest.fixture(scope="module")
def templates():
    return {mode: load_template(f"compact_{mode}") for mode in MODES}


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.data.world_people = 64
    for mode in MODES:
        config.protocol[f"{mode}_template"] = f"compact_{mode}"
    config.rollout.passages = 1
    config.model.vocab_size = 600
    return config


@pytest.fixture(scope="module")
def supervised(config, tmp_path_factory):
    return world_task(config, tmp_path_factory.mktemp("run")).supervised


# Traces as examples


def test_a_search_trace_is_what_a_rollout_leaves(templates, small_tokenizer):
    segments = ("<search> born Ann</search>", PASSAGES, "<answer> Bo </answer>")
    example = encode_trace(Trace(QUESTION, "search", segments), templates, small_tokenizer, 40)
    prompt = templates["search"].render(small_tokenizer, QUESTION.question)
    observation = render_observation(PASSAGES, small_tokenizer, 40)
    own = [small_tokenizer.encode(text) for text in segments[::2]]
    assert example.ids == [*prompt, *own[0], *observation, *own[1]]
    lengths = (len(prompt), len(own[0]), len(observation), len(own[1]))
    assert example.mask == [
        value for value, n in zip((0, 1, 0, 1), lengths, strict=True) for _ in range(n)
    ]


def test_the_observation_budget_holds(templates, small_tokenizer):
    long = [Passage("1", "Ann", "Ann was born in Bo. " * 20, 2.0)]
    trace = Trace(QUESTION, "search", ("<search> a</search>", long, "<answer> b </answer>"))
    short, roomy = (encode_trace(trace, templates, small_tokenizer, budget) for budget in (40, 60))
    assert len(roomy.ids) - len(short.ids) == 20
    assert sum(short.mask) == sum(roomy.mask)


def test_a_rag_trace_has_its_passages_in_the_prompt(templates, small_tokenizer):
    trace = Trace(QUESTION, "rag", (PASSAGES, "<answer> Bo </answer>"))
    example = encode_trace(trace, templates, small_tokenizer, 40)
    information = render_observation(PASSAGES, small_tokenizer, 40)
    prompt = templates["rag"].render(small_tokenizer, QUESTION.question, information)
    own = small_tokenizer.encode("<answer> Bo </answer>")
    assert example == Example(prompt + own, [0] * len(prompt) + [1] * len(own))


def test_special_tokens_in_a_trace_are_plain_text(templates, small_tokenizer, added_ids):
    bad = "<|end|><|pad|><tool>"
    trace = Trace(
        Question("q", bad, ("x",)),
        "search",
        (f"<search>{bad}</search>", [Passage("1", bad, bad, 1.0)], f"<answer>{bad}</answer>"),
    )
    assert added_ids.isdisjoint(encode_trace(trace, templates, small_tokenizer, 200).ids)


def test_a_trace_with_a_note_has_it_for_an_observation(templates, small_tokenizer):
    segments = ("<search> born Ann</search>", Note("born Ann: Bo"), "<answer> Bo </answer>")
    example = encode_trace(Trace(QUESTION, "search", segments), templates, small_tokenizer, 40)
    text = small_tokenizer.decode(example.ids)
    assert "</search>\n<information>\nborn Ann: Bo\n</information>\n<answer>" in text
    own = [small_tokenizer.encode(text) for text in segments[::2]]
    assert sum(example.mask) == sum(map(len, own))


def test_a_reading_has_its_query_in_the_prompt(small_tokenizer):
    reader = {"reader": load_template("compact_reader", reader=True)}
    trace = Trace(QUESTION, "reader", (PASSAGES, "<answer> Bo </answer>"), query="born Ann")
    example = encode_trace(trace, reader, small_tokenizer, 40)
    text = small_tokenizer.decode(example.ids)
    assert text.startswith("Question: Where was Ann born? Query: born Ann\n<information>\n")
    assert text.endswith("</information>\n<answer> Bo </answer>")


def test_the_harder_world_shows_the_prompts_of_all_methods(config, tmp_path, small_tokenizer):
    harder = config.copy_and_resolve_references()
    harder.data.world = "harder"
    for mode in WORLDS["harder"].modes:
        harder.protocol[f"{mode}_template"] = f"compact_{mode}"
    supervised = world_task(harder, tmp_path).supervised
    (phase,) = phases_of([READ | {"traces": 200}])
    examples = supervised.examples(phase, small_tokenizer, seed=0)
    prompts = [small_tokenizer.decode(example.ids) for example in examples]
    for mark in ("From memory:", "Step by step:", "Thoughts:", "With notes:", "Query:"):
        assert sum(mark in prompt for prompt in prompts) > 3
    (phase,) = phases_of([READ | {"mix": {"vary": 0.0, "wonder": 1}}])
    with pytest.raises(ValueError, match=r"its mix has no 'wonder'; the keys are direct, cot, rag"):
        supervised.examples(phase, small_tokenizer, seed=0)


# Phases


def test_a_phase_decides_what_is_shown(supervised, small_tokenizer):
    def shown(**changes):
        (phase,) = phases_of([READ | changes])
        return supervised.examples(phase, small_tokenizer, seed=0)

    everything = shown()
    assert len(everything) == 60 and everything == shown()
    assert shown(traces=59) == everything[:59]
    # Traces of one-hop questions are right; lazy ones are not, and are left out.
    lazy = {"mix": {"lazy": 1.0, "direct": 0.5, "rag": 0.0}}
    assert len(shown(**lazy)) == 60 > len(shown(**lazy, only_correct=True)) > 0
    # What was drawn at random is read, not learned.
    wander = {"mix": {"wander": 1.0, "retry": 0.0, "direct": 0.0, "rag": 0.0, "two_hop": 0.0}}
    learned, read = shown(**wander), shown(**wander, arbitrary=False)
    assert [e.ids for e in learned] == [e.ids for e in read]
    assert sum(sum(e.mask) for e in learned) > sum(sum(e.mask) for e in read)


def test_a_perfect_searcher_and_a_tokenizer(supervised):
    assert 0.5 < supervised.ceiling() <= 1
    tokenizer = supervised.tokenizer()
    assert 256 < tokenizer.vocab_size <= 600
    # Tags are tokens, though no passage has them.
    assert len(tokenizer.encode("</search>")) == 1


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"wonder": 0.5}, r"warm_start\.phases, 'read': its mix has no 'wonder'; the keys are"),
        ({"lazy": 1.5}, r"phases, 'read': lazy of its mix must lie in \[0, 1\], not 1\.5"),
        ({"lazy": float("nan")}, r"lazy of its mix must lie in \[0, 1\], not nan"),
    ],
)
def test_a_mix_that_is_not_known(config, tmp_path, mix, message):
    changed = config.copy_and_resolve_references()
    changed.warm_start.phases = (READ | {"mix": mix},)
    with pytest.raises(ValueError, match=message):
        world_task(changed, tmp_path)
