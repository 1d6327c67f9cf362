"""The terms by name, each against hand-worked episodes."""

from pathlib import Path

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.environment import Observation, SearchRecord
from sr1_jax.environment.episode import Episode, Next, Rules
from sr1_jax.environment.trajectory import Call
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.protocol.tags import SEARCH_TAGS, Tags, ToolTags
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import TERMS, Reward
from sr1_jax.rewards.reward import check_terms
from sr1_jax.rewards.settings import REWARD

QUESTION = Question("q", "Who?", ("Bob",), {"supporting_titles": ["Kiss and Tell (1945 film)"]})


def settings(**changes):
    config = REWARD.defaults()
    config.update(changes)
    return config


def value_of(term, trajectory, question=QUESTION, **changes):
    """A term's value and what it gives each segment, with weight 1."""
    reward = Reward(settings(terms=((term, 1.0),), **changes), 100)
    (scored,) = reward.score([trajectory], [question])
    assert scored.rewards[term] == pytest.approx(float(scored.segment_rewards.sum()))
    return scored.rewards[term], scored.segment_rewards.tolist()


@pytest.fixture
def make(make_trajectory):
    """`make(searches, segments=None, **fields)`: searches are (segment, [query], [passages])."""

    def build(searches=(), segments=None, **fields):
        segments = segments or 1 + max((segment for segment, *_ in searches), default=0)
        calls = [
            Call("search", "\n".join(queries), SearchRecord(queries, [passages] * len(queries)), n)
            for n, queries, passages in searches
        ]
        return make_trajectory(
            ids=range(2 * segments), mask=[0, 1] * segments, segments=segments,
            calls=calls + fields.pop("calls", []), **fields,
        )  # fmt: skip

    return build


def passage(title="T", text="nothing of use"):
    return Passage("1", title, text, 1.0)


# Retrieval


@pytest.mark.parametrize(
    ("found", "golden", "titles", "gold"),
    [
        (passage(text="The mayor is Bob."), ["Bob"], [], 1),
        (passage(text="The mayor is Bob."), ["Al", "bob!"], [], 1),
        (passage(title="Bob"), ["Bob"], [], 1),
        (passage(text="The party"), ["art"], [], 0),  # whole words
        (passage(text="in New\nYork City"), ["The New York"], [], 1),
        (passage(text="in the year 1,912."), ["1912"], [], 1),
        (passage(text="Do you know? Yes, no."), ["yes"], [], 0),
        (passage(text="Do you know? Yes, no."), ["No."], [], 0),
        (passage(text="anything"), ["The"], [], 0),  # normalises to nothing
        (passage(title="Ed Wood"), ["yes"], ["Scott Derrickson", "Ed Wood"], 1),
        (passage(title="ed  wood"), ["yes"], ["Ed Wood"], 1),
        (passage(title="Ed Wood (film)"), ["yes"], ["Ed Wood"], 0),
        (passage(title="The The"), ["x"], ["A"], 0),  # titles keep their articles
        (passage(title="Ailéan"), ["x"], ["Aile\u0301an"], 1),
        (passage(text="Ed Wood"), ["yes"], ["Ed Wood"], 0),  # a text is no title
        (passage(title=""), ["x"], [], 0),
    ],
)
def test_gold_is_a_title_or_an_answer(make, found, golden, titles, gold):
    question = Question("q", "Who?", tuple(golden), {"supporting_titles": titles})
    t = make([(0, ["a"], [passage(), found])], segments=2)
    assert value_of("retrieval", t, question) == (gold, [0, gold])
    assert value_of("retrieval_at_search", t, question) == (gold, [gold, 0])


def test_gold_counts_once_at_the_search_that_found_it_first(make):
    t = make([(0, ["a"], [passage()]), (1, ["b"], [passage(text="Bob")]),
              (2, ["c"], [passage(text="Bob")])], segments=4)  # fmt: skip
    assert value_of("retrieval_at_search", t) == (1, [0, 1, 0, 0])
    assert value_of("retrieval", t) == (1, [0, 0, 0, 1])


def test_without_a_search_nothing_is_found(make):
    # What stands in the prompt was not searched for.
    t = make(passages=[[passage(text="Bob")]], segments=2)
    for name in ("retrieval", "retrieval_at_search", "searched", "search_cost"):
        assert value_of(name, t) == (0, [0, 0])
    assert value_of("searched", make([(0, ["a"], [])], segments=2)) == (1, [0, 1])


def test_titles_that_are_none_are_refused_by_question(make):
    question = Question("nq:dev:7", "Who?", ("Bob",), {"supporting_titles": "Bob"})
    with pytest.raises(ValueError, match=r"nq:dev:7: metadata\.supporting_titles must be a"):
        value_of("retrieval", make([(0, ["a"], [passage()])]), question)


def test_calls_of_other_tools_are_no_searches(make):
    call = Call("calculate", "1+1", {"value": 2}, 0)
    t = make(calls=[call], segments=2)
    for name in ("retrieval", "searched", "search_cost"):
        assert value_of(name, t)[0] == 0


# Costs of turns


@pytest.mark.parametrize(
    ("free", "want"), [(0, [1, 0, 3, 0]), (1, [0, 0, 3, 0]), (2, [0, 0, 2, 0]), (9, [0, 0, 0, 0])]
)
def test_each_search_costs_where_it_was_made(make, free, want):
    t = make([(0, ["a"], []), (2, ["b", "c", "d"], [])], segments=4)
    assert value_of("search_cost", t, free_searches=free) == (sum(want), want)


def test_repeated_queries_cost_the_turn_that_repeats(make):
    t = make([(0, ["The mayor of Paris"], []), (1, ["mayor of  paris?"], []), (2, ["mayor"], []),
              (3, ["Mayor", "MAYOR!"], [])], segments=5)  # fmt: skip
    assert value_of("repeated_queries", t) == (3, [0, 1, 0, 2, 0])


def test_queries_that_normalise_to_nothing_are_compared_as_they_stand(make):
    t = make([(0, ["?"], []), (1, ["!"], []), (2, [" ? "], [])])
    assert value_of("repeated_queries", t) == (1, [0, 0, 1])


def test_requests_of_other_tools_are_compared_as_they_stand(make):
    calls = [Call("calculate", text, None, n) for n, text in enumerate(["12", "1-2", "1-2", "12 "])]
    calls.append(Call("lookup", "12", None, 4))
    assert value_of("repeated_queries", make(calls=calls, segments=5)) == (2, [0, 0, 1, 1, 0])


SEARCH, ANSWER, END = "</search>", "</answer>", TagAutomaton.END_OF_TEXT
TWO_TOOLS = Tags((*SEARCH_TAGS.tools, ToolTags("calculate", "result")))


@pytest.fixture
def play(small_tokenizer):
    """`play(turns, **rules)`: an episode, turn by turn (what is said, where it stopped)."""

    def run(*turns, **rules):
        limits = dict(max_calls=4, max_segment_tokens=60, max_context_tokens=1000, tags=TWO_TOOLS)
        episode = Episode(QUESTION, 0, [9] * 5, Rules(small_tokenizer, **(limits | rules)))
        for text, stop in turns:
            assert episode.status is None
            ids = small_tokenizer.encode(text)
            if stop is None:  # until the budget of the segment is spent
                ids = [ids[0]] * episode.tokens_left
            episode.add_sampled(ids, [0.0] * len(ids))
            following = episode.advance(stop)
            if following is Next.CALL:
                record = SearchRecord([episode.request], [[]])
                episode.answered(Observation("", record), [9] * 3)
            elif following is Next.CORRECTION:
                episode.corrected()
        assert episode.status is not None
        return episode.trajectory()

    return run


def test_segments_without_an_action_by_reason(play):
    t = play(
        ("<think>hm</think>", END),
        ("<calculate>1</calculate>", "</calculate>"),
        ("x", None),
        ("<calculate>2</calculate>", "</calculate>"),
        ("<answer>Bob</answer>", ANSWER),
        calls_of={"calculate": 1},
    )
    assert t.invalid_segments == {0: "malformed", 2: "overflowed", 3: "refused"}
    assert value_of("invalid_segments", t) == (3, [1, 0, 1, 1, 0])
    assert (t.segments, t.overflowed_segments, t.status) == (5, 1, "answered")


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        ("<search>q</search>", SEARCH, "refused"),
        ("<search></search>", SEARCH, "malformed"),
        ("q</search>", SEARCH, "malformed"),
        ("Bob</answer>", ANSWER, "malformed"),
        ("Bob", END, "malformed"),
        ("x", None, "overflowed"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_what_each_kind_of_turn_is_called(play, text, stop, reason, last):
    if last:
        t = play((text, stop), max_calls=0)
        assert t.invalid_segments == {0: reason}
        assert value_of("invalid_segments", t) == (1, [1])
    elif reason != "refused":
        t = play((text, stop), ("<answer>Bob</answer>", ANSWER))
        assert t.invalid_segments == {0: reason}
        assert value_of("invalid_segments", t) == (1, [1, 0])


def test_turns_that_act_are_valid(play):
    t = play(("<search>q</search>", SEARCH), ("<answer></answer>", ANSWER))
    assert t.invalid_segments == {}
    assert value_of("invalid_segments", t) == (0, [0, 0])


def test_a_segment_that_the_context_cuts_off_is_not_to_blame(play):
    t = play(("x", None), max_context_tokens=20)
    assert (t.status, t.invalid_segments) == ("truncated", {})


# Format, and the rewards of papers


def test_ill_formed_is_the_opposite_of_well_formed(make):
    for good in (True, False):
        t = make(well_formed=good)
        assert value_of("well_formed", t)[0] + value_of("ill_formed", t)[0] == 1


@pytest.mark.parametrize(("answer", "want"), [("Bob", 1), ("", 0), (" \n", 0), (None, 0)])
def test_final_format_is_an_answer_that_is_not_blank(make, answer, want):
    assert value_of("final_format", make(answer=answer))[0] == want


@pytest.mark.parametrize(
    ("searches", "well_formed", "want"), [(0, 0, 0), (0, 1, 0.5), (2, 0, 0.5), (2, 1, 1.0)]
)
def test_stage_one_of_r1_searcher(make, searches, well_formed, want):
    """arXiv 2503.05592: half a point for searching at all, half for the format."""
    t = make([(n, ["a"], []) for n in range(searches)], segments=3, well_formed=bool(well_formed))
    reward = Reward(settings(terms=(("searched", 0.5), ("well_formed", 0.5))), 100)
    assert reward.score([t], [QUESTION])[0].reward == want


@pytest.mark.parametrize(
    ("answer", "well_formed", "want"),
    [("Bob", 1, 1.0), ("Bob", 0, -1.0), ("Bob Ross", 1, 2 / 3), (None, 0, -2.0), ("Al", 1, 0.0)],
)
def test_stage_two_of_r1_searcher(make, answer, well_formed, want):
    """arXiv 2503.05592: F1, less two points for an ill-formed response."""
    t = make(answer=answer, well_formed=bool(well_formed))
    reward = Reward(settings(terms=(("f1", 1.0), ("ill_formed", -2.0))), 100)
    assert reward.score([t], [QUESTION])[0].reward == pytest.approx(want)


@pytest.mark.parametrize(
    ("answer", "text", "want"),
    [
        ("Bob", "", 1.0),
        ("Bob Ross", "<refine>Bob</refine>", 2 / 3),
        ("Al", "<refine>it is bob.</refine>", 0.1),
        (None, "<refine>Al</refine> x <refine>Bob</refine>", 0.1),
        (None, "<refine>Bob", 0.0),
        (None, "Bob</refine>", 0.0),
        (None, "Bob <refine>Al</refine> Bob", 0.0),
        (None, "<refine>Bob<refine>Al</refine>", 0.0),  # from the innermost opening tag
        (None, "<refine></refine>", 0.0),
    ],
)
def test_f1_or_what_was_refined(make, answer, text, want):
    """arXiv 2505.11277: F1 if above 0, else 0.1 if gold stands in a refine block."""
    t = make(answer=answer, policy_text=text, response_text="<refine>Bob</refine>" + text)
    assert value_of("f1_refine", t, refine_weight=0.1)[0] == pytest.approx(want)


@pytest.mark.parametrize("answer", ["Bob", "Al Bob", "Al", None])
def test_cover_em_is_another_name_of_substring(make, answer):
    t = make(answer=answer, well_formed=True)
    assert value_of("cover_em", t) == value_of("substring", t)
    weights = dict(format_weight=0.2)
    assert value_of("cover_em_format", t, **weights) == value_of("substring_format", t, **weights)


def test_the_published_table_as_a_term(make):
    """Gold came back, the answer is wrong: 0.2 + 0.1 if well-formed, else 0.1 for the answer."""
    weights = dict(format_weight=0.2, final_format_weight=0.1, retrieval_weight=0.1)
    found = [(0, ["a"], [passage(text="Bob")])]
    for searches, well_formed, want in [
        (found, True, 0.3), ([], True, 0.2), (found, False, 0.1), ([], False, 0.1),
    ]:  # fmt: skip
        t = make(searches, segments=2, answer="Al", well_formed=well_formed)
        value, by_segment = value_of("em_format", t, **weights)
        assert value == pytest.approx(want)
        np.testing.assert_allclose(by_segment, [0, want], rtol=1e-6)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": (("substring", 1.0), ("cover_em", 1.0))}, "'substring' and 'cover_em', which"),
        ({"final_format_weight": 0.1}, r"reward\.final_format_weight=0\.1 is the share"),
        ({"retrieval_weight": 0.1}, r"reward\.retrieval_weight=0\.1 is the share"),
        (
            {"terms": (("em_format", 1.0),), "format_weight": 0.9, "retrieval_weight": 0.2},
            r"reward\.retrieval_weight is 0\.2; .*reward\.format_weight=0\.9 at most 1",
        ),
        ({"refine_weight": 0.1}, r"reward\.refine_weight=0\.1 is what the term f1_refine"),
        ({"terms": (("f1_refine", 1.0),)}, r"reward\.refine_weight=0\.0 is what"),
        ({"free_searches": 2}, r"reward\.free_searches=2 is read by the term search_cost"),
        ({"terms": (("judge", 1.0),)}, r"reward\.judge\.url is not set"),
        (
            {"terms": (("judge", 1.0),), "judge": {"url": "http://h/v1"}},
            r"reward\.judge\.model is not set",
        ),
        ({"judge": {"model": "m"}}, r"reward\.judge\.model='m' is read by the term judge"),
        ({"judge": {"key_variable": "K"}}, r"reward\.judge\.key_variable='K' is read by"),
    ],
)
def test_settings_that_contradict_the_terms_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_terms(settings(**changes))


def test_final_format_alone_is_a_setting():
    check_terms(settings(terms=(("f1_format", 1.0),), final_format_weight=0.1))


def test_every_term_is_named_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "own_reward.md").read_text(encoding="utf-8")
    table = guide.split("A term of your own")[0]
    assert [name for name in TERMS if f"`{name}`" not in table] == []
    keys = [key for key, _ in REWARD.walk() if key.split(".")[0] not in ("terms", "judge")]
    assert [key for key in keys if f"reward.{key}" not in guide] == []
