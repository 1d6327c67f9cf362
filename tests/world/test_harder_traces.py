"""Traces of the harder world: what they show, what they must never show, and what they teach."""

import collections
import dataclasses
import random
import re

import pytest

from sr1_jax.protocol.answers import extract_answer
from sr1_jax.rewards import exact_match
from sr1_jax.world.harder.ceiling import ceilings_by_kind, harder_ceiling
from sr1_jax.world.harder.facts import NOT_KNOWN, build_harder_world
from sr1_jax.world.harder.questions import (
    SINGLE,
    options,
    questions_by_kind,
    sample_harder_questions,
)
from sr1_jax.world.harder.traces import HarderMix, HarderTraceWriter, said
from sr1_jax.world.traces import Note, query_of

MIX = HarderMix(two_hop=0.25, three_hop=0.2, comparison=0.2)
OTHERS = ("direct", "cot", "rag", "rag_comparison", "ircot", "search_o1", "reader")
SEARCH_ALONE = dict.fromkeys(OTHERS, 0.0)
PASSAGES = 2


@pytest.fixture(scope="module")
def world():
    return build_harder_world(0, people=160)


@pytest.fixture(scope="module")
def pools(world):
    return questions_by_kind(world, "train", random.Random(0))


@pytest.fixture(scope="module")
def writer(world, retriever, pools):
    return HarderTraceWriter(world, retriever, PASSAGES, pools)


@pytest.fixture(scope="module")
def traces(writer):
    return writer.write(MIX, 3000, seed=0)


def kind_of(trace) -> str:
    return trace.question.metadata["kind"]


def policy_text(trace) -> str:
    return "".join(segment for segment in trace.segments if isinstance(segment, str))


def queries_of(text) -> list[str]:
    return re.findall(r"<search> (.*?)</search>", text)


def of(traces, mode):
    return [trace for trace in traces if trace.mode == mode]


def test_a_seed_decides_everything(traces, writer, world, retriever, pools):
    again = HarderTraceWriter(world, retriever, PASSAGES, pools)
    assert again.write(MIX, 3000, seed=0) == traces
    assert writer.write(MIX, 300, seed=1) != traces[:300]


def test_every_mode_is_shown_in_its_own_form(traces):
    """Policy text is "P", an observation "o"; a prompt that carries passages begins with one."""
    forms = collections.defaultdict(collections.Counter)
    for trace in traces:
        form = "".join("P" if isinstance(segment, str) else "o" for segment in trace.segments)
        forms[trace.mode][form] += 1
        assert extract_answer(trace.segments[-1]) is not None
        assert bool(trace.query) == (trace.mode == "reader")
    assert {mode: set(found) for mode, found in forms.items()} == {
        "search": {"PoP", "PoPoP", "PoPoPoP"},
        "direct": {"P"},
        "cot": {"P"},
        "rag": {"oP"},
        "reader": {"oP"},
        "ircot": {"oPoP"},
        "search_o1": {"PoP"},
    }
    for trace in traces:
        text = policy_text(trace)
        thoughts = text.count("<think>")
        assert text.count("<think>") == text.count("</think>")
        if trace.mode in ("direct", "reader"):
            assert thoughts == 0
        if trace.mode == "ircot":  # the thought is the query, and no other follows it
            assert thoughts == 1 and not queries_of(text)
        if trace.mode == "search_o1":
            assert isinstance(trace.segments[1], Note) and len(queries_of(text)) == 1


def test_observations_are_what_the_retriever_found(traces, retriever):
    for trace in traces[:600]:
        shown = [segment for segment in trace.segments if isinstance(segment, list)]
        queries = queries_of(policy_text(trace)) if trace.mode == "search" else []
        if trace.mode in ("rag", "ircot"):
            queries.append(trace.question.question)
        if trace.mode == "ircot":
            thought = trace.segments[1].removeprefix("<think> ").removesuffix("</think>")
            queries.append(thought)
        if trace.mode == "reader":
            queries.append(trace.query)
        assert len(shown) == len(queries)
        for query, passages in zip(queries, shown):
            assert passages == retriever.search([query], 5)[0][: len(passages)]


def test_numbers_of_passages_vary(writer):
    for mix, wanted in (
        (HarderMix(vary=0.0), {2}),
        (HarderMix(vary=1.0), {1, 2, 3, 5}),
        (HarderMix(alone=1.0, rag_comparison=0.0), {1}),
    ):
        traces = writer.write(mix, 400, seed=0)
        sizes = {len(s) for t in traces for s in t.segments if isinstance(s, list)}
        assert sizes == wanted


def test_single_facts_are_answered_as_the_passages_say(traces, writer):
    """By the rule: marked passages do not count, and without any other nothing is known."""
    counts = collections.Counter()
    for trace in of(traces, "search"):
        if kind_of(trace) not in SINGLE:
            continue
        subject, relation, truth = trace.question.metadata["chain"][0]
        right = query_of(relation, subject)
        searches = dict(zip(queries_of(policy_text(trace)), trace.segments[1::2]))
        known = writer.conclude(searches[right], relation, subject)
        assert known in (truth, None)
        assert extract_answer(trace.segments[-1]) == (known or NOT_KNOWN)
        assert f"<think> {said(relation, subject, known)}</think>" in trace.segments[-1]
        counts[kind_of(trace), trace.correct] += 1
    for kind in SINGLE:
        assert counts[kind, True] > 20 * counts[kind, False] or counts[kind, True] > 50
    assert not counts["unanswerable", False]


@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_no_search_solves_what_takes_several_facts(writer, explore):
    mix = dataclasses.replace(MIX, **SEARCH_ALONE, explore=explore, two_hop=0.4, three_hop=0.3)
    searches = collections.Counter()
    found_gold = 0
    for trace in writer.write(mix, 2000, seed=1):
        kind, given = kind_of(trace), extract_answer(trace.segments[-1])
        if kind in ("two_hop", "three_hop"):
            assert not exact_match(given, trace.question.golden_answers)
            gold = trace.question.golden_answers[0]
            found_gold += any(f" {gold}." in hit.text for hit in trace.segments[-2])
        if kind not in SINGLE:
            assert not trace.correct
            searches[kind, trace.queries] += 1
    if explore:
        assert found_gold > 20  # what was found is not made use of
        assert searches["two_hop", 2] > 100 and searches["three_hop", 3] > 50
        assert searches["comparison", 2] > 50
    else:
        assert {n for _, n in searches} == {1}


def test_searches_of_comparisons_guess_or_miss_the_point(writer):
    mix = dataclasses.replace(MIX, **SEARCH_ALONE, comparison=1.0, two_hop=0.0, three_hop=0.0)
    lucky = collections.Counter()
    for trace in writer.write(dataclasses.replace(mix, explore=0.7), 800, seed=1):
        given = extract_answer(trace.segments[-1])
        assert trace.guessed == (given in options(trace.question))
        assert len(trace.segments) - 1 in trace.arbitrary
        if trace.guessed:
            lucky[exact_match(given, trace.question.golden_answers)] += 1
    assert lucky[True] / lucky.total() == pytest.approx(0.5, abs=0.07)


def test_prompts_with_passages_show_how_to_compare(writer):
    mix = HarderMix(**SEARCH_ALONE | {"rag_comparison": 1.0})
    traces = writer.write(mix, 300, seed=2)
    for trace in traces:
        passages, final = trace.segments
        chain = trace.question.metadata["chain"]
        found = [writer.conclude(passages, relation, subject) for subject, relation, _ in chain]
        assert trace.guessed == (None in found)
        assert trace.correct == (None not in found)
        for (subject, relation, _), known in zip(chain, found):
            assert said(relation, subject, known) in final
    assert sum(trace.correct for trace in traces) > 100


def test_readings_and_notes(traces, writer):
    for trace in of(traces, "reader"):
        passages, final = trace.segments
        written = extract_answer(final)
        query, _, found = written.partition(": ")
        assert query == trace.query
        assert found == "nothing" or any(found in passage.text for passage in passages)
    readings = [extract_answer(trace.segments[-1]) for trace in of(traces, "reader")]
    assert 10 < sum(text.endswith(": nothing") for text in readings) < len(readings) / 2
    for trace in of(traces, "search_o1"):
        _, note, final = trace.segments
        assert note.text in final


def test_giving_up_at_once(writer):
    traces = writer.write(HarderMix(**SEARCH_ALONE, lazy=1.0), 50, seed=0)
    assert {trace.queries for trace in traces} == {0}
    assert not any(trace.correct for trace in traces)


def test_shares_of_modes_and_kinds(traces):
    modes = collections.Counter(trace.mode for trace in traces)
    assert modes["rag"] / 3000 == pytest.approx(MIX.rag + MIX.rag_comparison, abs=0.03)
    for mode in ("direct", "cot", "ircot", "search_o1", "reader"):
        assert modes[mode] / 3000 == pytest.approx(getattr(MIX, mode), abs=0.03)
    kinds = collections.Counter(kind_of(trace) for trace in of(traces, "search"))
    for kind in ("two_hop", "three_hop", "comparison"):
        assert kinds[kind] / modes["search"] == pytest.approx(getattr(MIX, kind), abs=0.04)


# Ceilings


def test_ceilings_by_kind(world, retriever):
    questions = sample_harder_questions(world, "heldout", at_most=200, seed=0)

    def search(count):
        return lambda query: retriever.search([query], count)[0]

    by_count = {count: ceilings_by_kind(world, questions, search(count)) for count in (1, 2, 5)}
    nothing = ceilings_by_kind(world, questions, lambda query: [])
    # Only what is absent is answered without a passage.
    assert nothing.pop("unanswerable") < 1 and set(nothing.values()) == {0.0}
    for kind in by_count[1]:
        assert by_count[1][kind] <= by_count[2][kind] <= by_count[5][kind]
    assert min(by_count[5].values()) > 0.95
    overall = {count: harder_ceiling(world, questions, search(count)) for count in by_count}
    assert overall[1] + 0.05 < overall[2] <= overall[5]
    sizes = collections.Counter(question.metadata["kind"] for question in questions)
    want = sum(sizes[kind] * share for kind, share in by_count[2].items()) / len(questions)
    assert overall[2] == pytest.approx(want)
