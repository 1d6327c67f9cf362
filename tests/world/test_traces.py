"""Scripted traces: what they show, what they must never show, and how they are encoded."""

import collections
import dataclasses
import random

import pytest

from sr1_jax.protocol.answers import extract_answer, extract_queries
from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval import Passage
from sr1_jax.world.facts import (
    RELATIONS,
    build_world,
    one_hop_questions,
    sample_questions,
    two_hop_questions,
)
from sr1_jax.world.traces import TraceMix, TraceWriter, answer, scripted_ceiling, search
from sr1_jax.world.warm_start import encode_trace

MIX = TraceMix(direct=0.1, rag=0.1, retry=0.3, wander=0.5, explore=0.7, lazy=0.0, two_hop=0.5)
TEMPLATES = {mode: load_template(f"compact_{mode}") for mode in ("search", "direct", "rag")}
PASSAGES = 3


@pytest.fixture(scope="module")
def world():
    return build_world(0, people=64)


@pytest.fixture(scope="module")
def pools(world):
    rng = random.Random(0)
    return {
        1: list(one_hop_questions(world, "train", rng)),
        2: list(two_hop_questions(world, "train", rng)),
    }


@pytest.fixture(scope="module")
def writer(world, retriever):
    return TraceWriter(world, retriever, PASSAGES, guesses=["a wild guess"])


@pytest.fixture(scope="module")
def traces(writer, pools):
    return writer.write(pools, MIX, 1500, seed=0)


def searched(trace) -> list[str]:
    return [q for s in trace.segments if isinstance(s, str) for q in extract_queries(s)]


def of(traces, mode, hops):
    return [t for t in traces if t.mode == mode and t.question.metadata["hops"] == hops]


def test_a_seed_decides_everything(traces, world, retriever, pools):
    again = TraceWriter(world, retriever, PASSAGES, guesses=["a wild guess"])
    assert again.write(pools, MIX, 1500, seed=0) == traces
    assert again.write(pools, MIX, 1500, seed=1) != traces


def test_segments_alternate_and_end_with_an_answer(traces):
    for trace in traces:
        kinds = [isinstance(segment, str) for segment in trace.segments]
        assert kinds == [bool((len(kinds) - i) % 2) for i in range(len(kinds))]
        assert extract_answer(trace.segments[-1]) is not None
        assert kinds[0] == (trace.mode != "rag")
        assert len(kinds) == {"direct": 1, "rag": 2}.get(trace.mode, len(kinds))


def test_searches_carry_what_the_retriever_found(traces, retriever):
    for trace in traces[:400]:
        queries = [trace.question.question] if trace.mode == "rag" else searched(trace)
        found = [segment for segment in trace.segments if isinstance(segment, list)]
        assert found == retriever.search(queries, PASSAGES)
        assert trace.queries == len(queries)


@pytest.mark.parametrize("lazy", [0.0, 0.7])
def test_no_trace_of_a_two_hop_question_is_right(world, retriever, pools, lazy):
    guesses = [question.golden_answers[0] for question in pools[1]]
    writer = TraceWriter(world, retriever, PASSAGES, guesses)
    mix = dataclasses.replace(MIX, lazy=lazy, two_hop=0.9)
    for trace in writer.write(pools, mix, 2000, seed=1):
        if trace.question.metadata["hops"] == 2:
            assert not trace.correct
            assert trace.question.golden_answers[0] != extract_answer(trace.segments[-1])


def test_two_hop_traces_give_up(traces, world):
    """First hop, perhaps one more search, and then something that was read is the answer."""
    fact_of = {fact.passage: fact for fact in world.facts}
    kinds = collections.Counter()
    for trace in of(traces, "search", 2):
        (subject, first, bridge), (_, second, gold) = trace.question.metadata["chain"]
        queries, given = searched(trace), extract_answer(trace.segments[-1])
        assert queries[0] == f"{RELATIONS[first].keyword} {subject}" and len(queries) <= 2
        read = [world.fact(subject, first)]
        if len(queries) == 2:
            read += [fact_of[hit.text] for hit in trace.segments[3]]
            found = any(fact.object == gold for fact in read)
            kinds["second hop, gold found"] += (
                f"{RELATIONS[second].keyword} {bridge}" == (queries[1]) and found
            )
            kinds["something else"] += bridge not in queries[1]
        kinds["one search"] += len(queries) == 1
        kinds["first hop for an answer"] += given == bridge
        assert any(f.object == given and f.passage in trace.segments[-1] for f in read)
    # Searching on is shown, and making use of it is not.
    assert len(kinds) == 4 and min(kinds.values()) > 10


def test_one_hop_traces_search_the_fact_and_answer(traces, world):
    shapes = collections.Counter()
    for trace in of(traces, "search", 1):
        ((subject, relation, gold),) = trace.question.metadata["chain"]
        assert trace.correct and extract_answer(trace.segments[-1]) == gold
        assert world.fact(subject, relation).passage in trace.segments[-1]
        queries = searched(trace)
        right = f"{RELATIONS[relation].keyword} {subject}"
        assert right in queries and len(queries) <= 2
        shapes[len(queries), queries[0] == right] += 1
    # Searched once; right and once more; wrong and recovered.
    assert all(shapes[shape] > 50 for shape in [(1, True), (2, True), (2, False)])


def test_traces_without_a_search_of_their_own(traces):
    assert of(traces, "direct", 1) and not of(traces, "direct", 2)
    for trace in of(traces, "direct", 1):
        assert trace.correct and not trace.queries
    rag = of(traces, "rag", 1)
    assert rag and not of(traces, "rag", 2)
    for trace in rag:
        passages, final = trace.segments
        known = any(trace.question.golden_answers[0] in p.text for p in passages)
        assert extract_answer(final) == (
            trace.question.golden_answers[0] if known else "a wild guess"
        )
        if known:
            assert any(p.text in final for p in passages)


@pytest.mark.parametrize(
    ("change", "mode", "searches"),
    [
        ({"direct": 1.0}, "direct", {0}),
        ({"direct": 0.0, "rag": 1.0}, "rag", {1}),
        ({"direct": 0.0, "rag": 0.0, "lazy": 1.0}, "search", {0}),
        ({"direct": 0.0, "rag": 0.0, "retry": 0.0, "wander": 0.0, "explore": 0.0}, "search", {1}),
        ({"direct": 0.0, "rag": 0.0, "retry": 1.0, "two_hop": 0.0}, "search", {2}),
        ({"direct": 0.0, "rag": 0.0, "retry": 0.0, "wander": 1.0, "explore": 1.0}, "search", {2}),
    ],
)
def test_a_mix_of_one_kind(writer, pools, change, mode, searches):
    traces = writer.write(pools, dataclasses.replace(MIX, **change), 60, seed=0)
    assert len(traces) == 60
    assert {t.mode for t in traces} == {mode}
    assert {t.queries for t in traces} == searches
    if change.get("lazy"):
        assert not any(t.correct for t in traces)


def test_share_of_two_hop_questions(writer, pools):
    for share in (0.0, 0.3, 1.0):
        mix = dataclasses.replace(MIX, direct=0.0, rag=0.0, two_hop=share)
        traces = writer.write(pools, mix, 400, seed=0)
        assert len(of(traces, "search", 2)) / 400 == pytest.approx(share, abs=0.07)


def test_written_forms():
    assert search("birthplace", "Ann Bel") == (
        "<think> need born</think><search> born Ann Bel</search>"
    )
    assert answer("Ula", "Ann was born in Ula.") == (
        "<think> Ann was born in Ula.</think><answer> Ula </answer>"
    )


def test_encoding_is_that_of_a_rollout(traces, small_tokenizer):
    budget = 60
    kinds = collections.Counter()
    for trace in traces[:120]:
        example = encode_trace(trace, TEMPLATES, small_tokenizer, budget)
        assert len(example.ids) == len(example.mask)
        segments = list(trace.segments)
        information = None
        if trace.mode == "rag":
            information = render_observation(segments.pop(0), small_tokenizer, budget)
        want = TEMPLATES[trace.mode].render(small_tokenizer, trace.question.question, information)
        mask = [0] * len(want)
        for segment in segments:
            own = isinstance(segment, str)
            new = (
                small_tokenizer.encode(segment)
                if own
                else render_observation(segment, small_tokenizer, budget)
            )
            want, mask = want + new, mask + [int(own)] * len(new)
        assert example.ids == want
        assert example.mask == mask
        written = small_tokenizer.decode([i for i, m in zip(example.ids, example.mask) if m])
        assert written == "".join(s for s in trace.segments if isinstance(s, str))
        kinds[trace.mode] += 1
    assert len(kinds) == 3


def test_ceiling(world, retriever):
    questions = sample_questions(world, "heldout", each=30, seed=0)
    passages = {f"{RELATIONS[f.relation].keyword} {f.subject}": f.passage for f in world.facts}

    def perfect(query):
        return [Passage("1", "", "another fact", 2.0), Passage("2", "", passages[query], 1.0)]

    assert scripted_ceiling(world, questions, perfect) == 1.0
    assert scripted_ceiling(world, questions, lambda query: []) == 0.0

    def not_of_people(query):
        return perfect(query) if not query.startswith(("born", "married")) else []

    solvable = [
        not {"birthplace", "spouse"} & {r for _, r, _ in q.metadata["chain"]} for q in questions
    ]
    assert 0 < sum(solvable) < len(questions)
    assert scripted_ceiling(world, questions, not_of_people) == sum(solvable) / len(questions)
    real = scripted_ceiling(world, questions, lambda q: retriever.search([q], PASSAGES)[0])
    assert real > 0.8
