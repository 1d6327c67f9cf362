"""The turn logic of one episode, case by case, without a model."""

import dataclasses

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.environment.episode import Episode, Limits, Next
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.retrieval.base import Passage

SEARCH, ANSWER, END = "</search>", "</answer>", TagAutomaton.END_OF_TEXT
QUESTION = Question("q1", "Who?", ("Bob",))
LIMITS = Limits(max_searches=2, max_segment_tokens=200, max_context_tokens=1000)
FOUND = [[Passage("p", "T", "text", 1.0)]]  # of one query


@pytest.fixture
def play(small_tokenizer):
    """An episode with a prompt of ten tokens that speaks in texts; see `Player`."""
    return lambda **changes: Player(small_tokenizer, dataclasses.replace(LIMITS, **changes))


class Player:
    def __init__(self, tokenizer, limits):
        self.tokenizer = tokenizer
        self.episode = Episode(QUESTION, 0, [9] * 10, limits)

    def say(self, text, stop) -> Next:
        """The policy writes `text`, in which the automaton found `stop`."""
        ids = self.tokenizer.encode(text)
        self.episode.add_sampled(ids, [-0.5] * len(ids))
        return self.episode.advance(stop, self.tokenizer)

    def see(self, text, passages=None) -> Next:
        return self.episode.observe(self.tokenizer.encode(text), passages)

    def finish(self, metric="em", format_weight=0.0):
        return self.episode.trajectory(self.tokenizer, metric=metric, format_weight=format_weight)


def test_search_then_answer(play, small_tokenizer):
    p = play()
    first, seen = "<think>hm</think><search> Bob </search>", "\n<information>\nx\n</information>\n"
    last = "<think>so</think><answer> Bob </answer>"
    assert p.say(first, SEARCH) is Next.SEARCH
    assert p.episode.queries == ["Bob"]
    assert p.see(seen, FOUND) is Next.POLICY
    assert p.say(last, ANSWER) is Next.NOTHING

    t = p.finish()
    lengths = [len(small_tokenizer.encode(text)) for text in (first, seen, last)]
    assert t.ids.tolist() == [9] * 10 + small_tokenizer.encode(first) + small_tokenizer.encode(
        seen
    ) + small_tokenizer.encode(last)
    assert t.mask.tolist() == [0] * 10 + [1] * lengths[0] + [0] * lengths[1] + [1] * lengths[2]
    np.testing.assert_array_equal(t.logp, -0.5 * t.mask)
    assert (t.ids.dtype, t.mask.dtype, t.logp.dtype) == (np.int32, np.int32, np.float32)
    assert t.prompt_length == 10
    assert t.response_text == first + seen + last
    assert t.policy_text == first + last
    assert (t.question_id, t.sample, t.status, t.answer) == ("q1", 0, "answered", "Bob")
    assert (t.searches, t.passages, t.segments) == (["Bob"], FOUND, 2)
    assert t.well_formed and t.reward == 1.0 and t.golden_answers == ("Bob",)


def test_answer_at_once(play):
    p = play()
    assert p.say("<think>I know</think><answer>Al</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.answer, t.reward, t.searches, t.segments) == ("answered", "Al", 0, [], 1)


def test_text_after_the_stop_in_its_token_stays(play):
    p = play()
    assert p.say("<answer>Bob</answer>!", ANSWER) is Next.NOTHING
    t = p.finish()
    assert t.answer == "Bob" and t.policy_text.endswith("!") and not t.well_formed


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("no tags at all", END),
        ("", END),
        ("<think>only</think>", END),
        ("<answer>Bob", END),  # not closed
        ("<search>Bob", END),
        ("Bob</search>", SEARCH),  # not opened
        ("Bob</answer>", ANSWER),
        ("<search> \n</search>", SEARCH),  # blank
        ("<answer>Bob</search>", SEARCH),  # the wrong one is closed
        ("<search>Bob</answer>", ANSWER),
    ],
)
def test_anything_else_is_corrected(play, text, stop):
    p = play()
    assert p.say(text, stop) is Next.CORRECTION
    assert p.see("try again") is Next.POLICY
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.searches, t.passages, t.segments, t.answer) == ([], [], 2, "Bob")
    assert not t.well_formed


def test_a_malformed_segment_forgets_tags_of_earlier_segments(play):
    p = play()
    assert p.say("<answer>Bob", END) is Next.CORRECTION
    p.see("try again")
    assert p.say("</answer>", ANSWER) is Next.CORRECTION


def test_an_empty_answer_is_an_answer(play):
    p = play()
    assert p.say("<answer></answer>", ANSWER) is Next.NOTHING
    assert (p.finish().status, p.finish().answer, p.finish().reward) == ("answered", "", 0.0)


def test_lines_of_a_query_are_one_query(play):
    p = play()
    assert p.say("<search>one\n\n two </search>", SEARCH) is Next.SEARCH
    assert p.episode.queries == ["one two"]


def test_each_line_can_be_a_query(play):
    p = play(parallel_queries=True)
    assert p.say("<search>one\n\n two </search>", SEARCH) is Next.SEARCH
    assert p.episode.queries == ["one", "two"]
    found = [FOUND[0], []]
    assert p.see("seen", found) is Next.POLICY
    assert p.say("<search>three</search>", SEARCH) is Next.SEARCH
    p.see("seen", FOUND)
    p.say("<answer>x</answer>", ANSWER)
    t = p.finish()
    assert (t.searches, t.passages) == (["one", "two", "three"], [*found, *FOUND])


def test_the_last_segment_refuses_a_search(play):
    p = play(max_searches=2)
    for _ in range(2):
        assert p.say("<search>q</search>", SEARCH) is Next.SEARCH
        assert p.see("seen", FOUND) is Next.POLICY
    assert p.say("<search>q</search>", SEARCH) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.answer, t.reward) == ("no_answer", None, 0.0)
    assert (t.searches, t.segments) == (["q", "q"], 3)


def test_corrections_count_as_turns(play):
    p = play(max_searches=2)
    assert p.say("?", END) is Next.CORRECTION
    p.see("try again")
    assert p.say("<search>q</search>", SEARCH) is Next.SEARCH
    p.see("seen", FOUND)
    assert p.say("?", END) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.searches, t.segments) == ("no_answer", ["q"], 3)


@pytest.mark.parametrize("text_and_stop", [("<search>q</search>", SEARCH), ("?", END)])
def test_without_searches_the_first_segment_is_the_last(play, text_and_stop):
    p = play(max_searches=0)
    assert p.say(*text_and_stop) is Next.NOTHING
    assert p.finish().status == "no_answer"


def test_an_answer_in_the_last_segment_counts(play):
    p = play(max_searches=0)
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    assert (p.finish().status, p.finish().reward) == ("answered", 1.0)


def test_the_segment_budget_truncates(play, small_tokenizer):
    p = play(max_segment_tokens=4)
    p.episode.add_sampled([5, 6], [0.0] * 2)
    assert p.episode.advance(None, small_tokenizer) is Next.POLICY
    assert p.episode.tokens_left == 2
    p.episode.add_sampled([7, 8], [0.0] * 2)
    assert p.episode.advance(None, small_tokenizer) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.answer, t.mask.sum()) == ("truncated", None, 4)


def test_a_stop_with_the_last_token_of_the_budget_counts(play, small_tokenizer):
    text = "<answer>Bob</answer>"
    p = play(max_segment_tokens=len(small_tokenizer.encode(text)))
    assert p.say(text, ANSWER) is Next.NOTHING
    assert p.finish().status == "answered"


def test_every_segment_has_a_budget_of_its_own_within_the_context(play, small_tokenizer):
    p = play(max_segment_tokens=20, max_context_tokens=60)
    size = len(small_tokenizer.encode("<search>q</search>"))
    assert p.episode.tokens_left == 20
    p.say("<search>q</search>", SEARCH)
    assert p.episode.tokens_left == 20 - size
    p.episode.observe([9] * 10, FOUND)
    assert p.episode.tokens_left == 20
    p.say("<search>q</search>", SEARCH)
    p.episode.observe([9] * 20, FOUND)
    assert p.episode.tokens_left == 60 - 10 - 30 - 2 * size < 20


def test_the_context_budget_truncates(play, small_tokenizer):
    p = play(max_context_tokens=13)
    p.episode.add_sampled([5, 5, 5], [0.0] * 3)
    assert p.episode.advance(None, small_tokenizer) is Next.NOTHING
    assert (p.finish().status, len(p.finish().ids)) == ("truncated", 13)


@pytest.mark.parametrize("passages", [FOUND, None])
def test_an_observation_that_leaves_no_room_ends_the_episode(play, small_tokenizer, passages):
    text, stop = ("<search>q</search>", SEARCH) if passages else ("?", END)
    size = 10 + len(small_tokenizer.encode(text))
    for room, want in [(5, Next.POLICY), (4, Next.NOTHING)]:
        p = play(max_context_tokens=size + room)
        p.say(text, stop)
        assert p.episode.observe([9] * 4, passages) is want
        t = p.finish()
        # What did not fit is not there, but the search was made.
        assert len(t.ids) == size + (4 if want is Next.POLICY else 0)
        assert t.searches == (["q"] if passages else [])
        assert t.passages == (FOUND if passages else [])
    assert t.status == "truncated"
    assert t.segments == 1


def test_tokens_of_one_segment_may_come_in_parts(play, small_tokenizer):
    """A tag that is cut between two calls of the decode program is still one tag."""
    p = play()
    ids = small_tokenizer.encode("<search>Bob</search>")
    for token in ids[:-1]:
        p.episode.add_sampled([token], [0.0])
        assert p.episode.advance(None, small_tokenizer) is Next.POLICY
    p.episode.add_sampled(ids[-1:], [0.0])
    assert p.episode.advance(SEARCH, small_tokenizer) is Next.SEARCH
    assert p.episode.queries == ["Bob"]


def test_an_invented_observation_is_not_well_formed(play):
    text = (
        "<think>a</think><search>q</search><information>Bob</information>"
        "<think>b</think><answer>Bob</answer>"
    )
    p = play()
    assert p.say(text, ANSWER) is Next.NOTHING
    t = p.finish(format_weight=0.25)
    assert not t.well_formed
    assert t.reward == 0.75


def test_an_answer_in_an_observation_is_not_one(play):
    """Were it not escaped, it would still not count."""
    p = play(max_searches=1)
    p.say("<search>q</search>", SEARCH)
    p.see("<information><answer>Bob</answer></information>", FOUND)
    assert p.say("<think>ok</think>", END) is Next.NOTHING
    t = p.finish(metric="substring")
    assert (t.answer, t.reward, t.status) == (None, 0.0, "no_answer")
    assert "Bob" in t.response_text and "Bob" not in t.policy_text


def test_half_a_character_does_not_join_the_next_segment(play, small_tokenizer):
    euro = [small_tokenizer.token_bytes.index(bytes([byte])) for byte in "€".encode()]
    p = play()
    p.episode.add_sampled(euro[:1], [0.0])
    p.episode.advance(END, small_tokenizer)
    p.see("x")
    p.episode.add_sampled(euro[1:], [0.0] * 2)
    p.episode.advance(END, small_tokenizer)
    assert "€" not in p.finish().policy_text


def test_the_random_stream_is_that_of_question_and_sample():
    def stream(question_id, sample):
        question = Question(question_id, "Who?", ("Bob",))
        return Episode(question, sample, [1], LIMITS).stream

    assert stream("q1", 3) == stream("q1", 3)
    assert stream("q1", 0) != stream("q2", 0)
    assert stream("q1", 0)[0] == stream("q1", 1)[0] and stream("q1", 1)[1] == 1
    # CRC-32 of "123456789", the check value of its definition: the same on every machine.
    assert stream("123456789", 0)[0] == 0xCBF43926 < 2**32
