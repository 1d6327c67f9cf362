"""The turn logic of one episode, case by case, without a model."""

import zlib

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.environment import Observation, SearchRecord, SearchTool
from sr1_jax.environment.episode import Episode, Next, Rules
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.protocol.tags import SEARCH_TAGS, Tags, ToolTags
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import Reward
from sr1_jax.rewards.settings import REWARD

SEARCH, ANSWER, END = "</search>", "</answer>", TagAutomaton.END_OF_TEXT
QUESTION = Question("q1", "Who?", ("Bob",))
FOUND = [[Passage("p", "T", "text", 1.0)]]  # of one query


@pytest.fixture
def play(small_tokenizer):
    """An episode with a prompt of ten tokens that speaks in texts; see `Player`."""

    def make(**changes):
        limits = {"max_calls": 2, "max_segment_tokens": 200, "max_context_tokens": 1000}
        return Player(Rules(small_tokenizer, **(limits | changes)))

    return make


class Player:
    def __init__(self, rules):
        self.tokenizer = rules.tokenizer
        self.episode = Episode(QUESTION, 0, [9] * 10, rules)

    def say(self, text, stop) -> Next:
        """The policy writes `text`, in which the automaton found `stop`."""
        ids = self.tokenizer.encode(text)
        self.episode.add_sampled(ids, [-0.5] * len(ids))
        return self.episode.advance(stop)

    def see(self, text, passages=FOUND) -> Next:
        """The search tool shows `text` for what was asked."""
        return self.see_ids(self.tokenizer.encode(text), passages)

    def see_ids(self, ids, passages=FOUND) -> Next:
        queries = SearchTool(None, 1).queries(self.episode.request)
        return self.episode.answered(Observation("", SearchRecord(queries, passages)), ids)

    def corrected(self) -> Next:
        return self.episode.corrected()

    def finish(self, **reward):
        config = REWARD.defaults()
        config.update(reward)
        (trajectory,) = Reward(config, 1000).score([self.episode.trajectory()], [QUESTION])
        return trajectory


def test_search_then_answer(play, small_tokenizer):
    p = play()
    first, seen = "<think>hm</think><search> Bob </search>", "\n<information>\nx\n</information>\n"
    last = "<think>so</think><answer> Bob </answer>"
    assert p.say(first, SEARCH) is Next.CALL
    assert (p.episode.tag, p.episode.request) == ("search", "Bob")
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
    assert p.corrected() is Next.POLICY
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.searches, t.passages, t.segments, t.answer) == ([], [], 2, "Bob")
    assert not t.well_formed


def test_a_malformed_segment_forgets_tags_of_earlier_segments(play):
    p = play()
    assert p.say("<answer>Bob", END) is Next.CORRECTION
    p.corrected()
    assert p.say("</answer>", ANSWER) is Next.CORRECTION


def test_an_empty_answer_is_an_answer(play):
    p = play()
    assert p.say("<answer></answer>", ANSWER) is Next.NOTHING
    assert (p.finish().status, p.finish().answer, p.finish().reward) == ("answered", "", 0.0)


def test_the_last_segment_refuses_a_search(play):
    p = play(max_calls=2)
    for _ in range(2):
        assert p.say("<search>q</search>", SEARCH) is Next.CALL
        assert p.see("seen", FOUND) is Next.POLICY
    assert p.say("<search>q</search>", SEARCH) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.answer, t.reward) == ("no_answer", None, 0.0)
    assert (t.searches, t.segments) == (["q", "q"], 3)


def test_corrections_count_as_turns(play):
    p = play(max_calls=2)
    assert p.say("?", END) is Next.CORRECTION
    p.corrected()
    assert p.say("<search>q</search>", SEARCH) is Next.CALL
    p.see("seen", FOUND)
    assert p.say("?", END) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.searches, t.segments) == ("no_answer", ["q"], 3)


@pytest.mark.parametrize("text_and_stop", [("<search>q</search>", SEARCH), ("?", END)])
def test_without_searches_the_first_segment_is_the_last(play, text_and_stop):
    p = play(max_calls=0)
    assert p.say(*text_and_stop) is Next.NOTHING
    assert p.finish().status == "no_answer"


def test_an_answer_in_the_last_segment_counts(play):
    p = play(max_calls=0)
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    assert (p.finish().status, p.finish().reward) == ("answered", 1.0)


def test_a_segment_that_overflows_is_a_turn_without_an_action(play):
    """The corrective text comes, and the remaining turns: only the last one ends the episode."""
    p = play(max_segment_tokens=4, max_calls=1)
    p.episode.add_sampled([5, 6], [0.0] * 2)
    assert p.episode.advance(None) is Next.POLICY
    assert p.episode.tokens_left == 2
    p.episode.add_sampled([7, 8], [0.0] * 2)
    assert p.episode.advance(None) is Next.CORRECTION
    assert p.corrected() is Next.POLICY
    assert p.episode.tokens_left == 4
    p.episode.add_sampled([5, 6, 7, 8], [0.0] * 4)
    assert p.episode.advance(None) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.answer, t.mask.sum()) == ("truncated", None, 8)
    assert (t.segments, t.overflowed_segments) == (2, 2)
    assert (t.reward, t.trains) == (0.0, True)
    assert not p.finish(truncated="mask").trains


def test_an_answer_after_an_overflow_counts(play, small_tokenizer):
    text = "<answer>Bob</answer>"
    size = len(small_tokenizer.encode(text))
    p = play(max_segment_tokens=size)
    p.episode.add_sampled([5] * size, [0.0] * size)
    assert p.episode.advance(None) is Next.CORRECTION
    p.corrected()
    assert p.say(text, ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.reward, t.overflowed_segments) == ("answered", 1.0, 1)


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
    p.see_ids([9] * 10)
    assert p.episode.tokens_left == 20
    p.say("<search>q</search>", SEARCH)
    p.see_ids([9] * 20)
    assert p.episode.tokens_left == 60 - 10 - 30 - 2 * size < 20


def test_the_context_budget_truncates(play, small_tokenizer):
    p = play(max_context_tokens=13)
    p.episode.add_sampled([5, 5, 5], [0.0] * 3)
    assert p.episode.advance(None) is Next.NOTHING
    assert (p.finish().status, len(p.finish().ids)) == ("truncated", 13)


@pytest.mark.parametrize("searched", [True, False])
def test_an_observation_that_leaves_no_room_ends_the_episode(play, small_tokenizer, searched):
    text, stop = ("<search>q</search>", SEARCH) if searched else ("?", END)
    p = play()
    p.say(text, stop)
    shown = 4 if searched else len(p.episode.correction)
    size = 10 + len(small_tokenizer.encode(text))
    for room, want in [(shown + 1, Next.POLICY), (shown, Next.NOTHING)]:
        p = play(max_context_tokens=size + room)
        p.say(text, stop)
        assert (p.see_ids([9] * 4) if searched else p.corrected()) is want
        t = p.finish()
        # What did not fit is not there, but the search was made.
        assert len(t.ids) == size + (shown if want is Next.POLICY else 0)
        assert t.searches == (["q"] if searched else [])
        assert t.passages == (FOUND if searched else [])
    assert t.status == "truncated"
    assert t.segments == 1


def test_tokens_of_one_segment_may_come_in_parts(play, small_tokenizer):
    """A tag that is cut between two calls of the decode program is still one tag."""
    p = play()
    ids = small_tokenizer.encode("<search>Bob</search>")
    for token in ids[:-1]:
        p.episode.add_sampled([token], [0.0])
        assert p.episode.advance(None) is Next.POLICY
    p.episode.add_sampled(ids[-1:], [0.0])
    assert p.episode.advance(SEARCH) is Next.CALL
    assert p.episode.request == "Bob"


def test_an_invented_observation_is_not_well_formed(play):
    text = (
        "<think>a</think><search>q</search><information>Bob</information>"
        "<think>b</think><answer>Bob</answer>"
    )
    p = play()
    assert p.say(text, ANSWER) is Next.NOTHING
    t = p.finish(terms=(("em_format", 1.0),), format_weight=0.25)
    assert not t.well_formed
    assert t.reward == 0.75


def test_an_answer_in_an_observation_is_not_one(play):
    """Were it not escaped, it would still not count."""
    p = play(max_calls=1)
    p.say("<search>q</search>", SEARCH)
    p.see("<information><answer>Bob</answer></information>", FOUND)
    assert p.say("<think>ok</think>", END) is Next.NOTHING
    t = p.finish(terms=(("substring", 1.0),))
    assert (t.answer, t.reward, t.status) == (None, 0.0, "no_answer")
    assert "Bob" in t.response_text and "Bob" not in t.policy_text


def test_half_a_character_does_not_join_the_next_segment(play, small_tokenizer):
    euro = [small_tokenizer.token_bytes.index(bytes([byte])) for byte in "€".encode()]
    p = play()
    p.episode.add_sampled(euro[:1], [0.0])
    p.episode.advance(END)
    p.corrected()
    p.episode.add_sampled(euro[1:], [0.0] * 2)
    p.episode.advance(END)
    assert "€" not in p.finish().policy_text


def test_the_random_stream_is_that_of_question_and_sample(small_tokenizer):
    def stream(question_id, sample):
        question = Question(question_id, "Who?", ("Bob",))
        return Episode(question, sample, [1], Rules(small_tokenizer, 1, 9, 99)).stream

    assert stream("q1", 3) == stream("q1", 3)
    assert stream("q1", 0) != stream("q2", 0)
    assert stream("q1", 0)[0] == stream("q1", 1)[0] and stream("q1", 1)[1] == 1
    # CRC-32 of "123456789", the check value of its definition: the same on every machine.
    assert stream("123456789", 0)[0] == 0xCBF43926 < 2**32


TWO_TOOLS = Tags((*SEARCH_TAGS.tools, ToolTags("calculate", "result")))


def test_two_tools(play):
    p = play(tags=TWO_TOOLS, max_calls=3)
    assert p.say("<think>a</think><calculate> 6*7 </calculate>", "</calculate>") is Next.CALL
    assert (p.episode.tag, p.episode.request) == ("calculate", "6*7")
    shown = p.tokenizer.encode("\n<result>\n42\n</result>\n")
    assert p.episode.answered(Observation("42", {"value": 42}), shown) is Next.POLICY
    assert p.say("<think>b</think><search>Bob</search>", SEARCH) is Next.CALL
    p.see("\n<information>\nx\n</information>\n")
    assert p.say("<think>c</think><answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert t.well_formed
    assert [(c.tag, c.request) for c in t.calls] == [("calculate", "6*7"), ("search", "Bob")]
    assert t.calls[0].record == {"value": 42}
    assert [call.segment for call in t.calls] == [0, 1]
    assert t.searches == ["Bob"] and t.passages == FOUND


def test_a_tool_whose_calls_are_used_up_is_refused(play):
    p = play(tags=TWO_TOOLS, max_calls=4, calls_of={"calculate": 1})
    assert p.say("<calculate>1</calculate>", "</calculate>") is Next.CALL
    p.episode.answered(Observation("1"), [9])
    assert p.say("<calculate>2</calculate>", "</calculate>") is Next.CORRECTION
    assert "no more calls of calculate" in p.tokenizer.decode(p.episode.correction)
    p.corrected()
    assert p.say("<search>q</search>", SEARCH) is Next.CALL
    p.see("seen")
    assert [(call.request, call.segment) for call in p.finish().calls] == [("1", 0), ("q", 2)]


def test_no_calls_of_a_tool_at_all(play):
    p = play(tags=TWO_TOOLS, calls_of={"search": 0})
    assert p.say("<search>q</search>", SEARCH) is Next.CORRECTION


def test_an_invented_result_is_not_well_formed(play):
    p = play(tags=TWO_TOOLS)
    p.say(
        "<think>a</think><calculate>1</calculate><result>1</result>"
        "<think>b</think><answer>Bob</answer>",
        ANSWER,
    )
    assert not p.finish().well_formed


# Where the search tool reads thoughts.

THINK = "</think>"
THOUGHTS = Tags((ToolTags("search", "information", True),))


def test_each_thought_is_a_request(play, small_tokenizer):
    p = play(tags=THOUGHTS)
    assert p.say("<think> who is\n the mayor </think>", THINK) is Next.CALL
    assert (p.episode.tag, p.episode.request) == ("search", "who is\n the mayor")
    seen = "\n<information>\nx\n</information>\n"
    assert p.see(seen) is Next.POLICY
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.answer, t.status, t.well_formed, t.segments) == ("Bob", "answered", True, 2)
    assert t.searches == ["who is the mayor"] and t.calls[0].tag == "search"


def test_the_last_thought_asks_nothing(play, small_tokenizer):
    """The policy goes on in its segment, whose tokens are one run, and may still answer."""
    p = play(tags=THOUGHTS, max_calls=1)
    assert p.say("<think>a</think>", THINK) is Next.CALL
    p.see("\n<information>\nx\n</information>\n")
    left = p.episode.tokens_left
    thought = "<think>b</think>\n"
    assert p.say(thought, THINK) is Next.POLICY
    assert p.episode.rest == "\n"
    assert p.episode.tokens_left == left - len(small_tokenizer.encode(thought))
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert (t.answer, t.searches, t.segments, t.well_formed) == ("Bob", ["a"], 2, True)
    assert (np.diff(t.mask, prepend=0) > 0).sum() == 2


def test_thoughts_without_any_call(play):
    p = play(tags=THOUGHTS, max_calls=0)
    assert p.say("<think>a</think>", THINK) is Next.POLICY
    assert p.say("<think>b</think>", THINK) is Next.POLICY
    assert p.say("", END) is Next.NOTHING
    t = p.finish()
    assert (t.status, t.searches, t.segments) == ("no_answer", [], 1)


def test_the_budget_ends_in_a_thought_that_asks_nothing(play, small_tokenizer):
    thought = "<think>a</think>"
    size = len(small_tokenizer.encode(thought))
    p = play(tags=THOUGHTS, max_calls=0, max_segment_tokens=size)
    assert p.say(thought, THINK) is Next.NOTHING
    assert (p.finish().status, p.finish().overflowed_segments) == ("truncated", 1)
    # In a segment that may ask, the same thought does.
    p = play(tags=THOUGHTS, max_calls=1, max_segment_tokens=size)
    assert p.say(thought, THINK) is Next.CALL
    p = play(tags=THOUGHTS, max_calls=0, max_context_tokens=10 + size)
    assert p.say(thought, THINK) is Next.NOTHING
    assert (p.finish().status, p.finish().overflowed_segments) == ("truncated", 0)


def test_thoughts_after_the_calls_of_the_tool_itself(play):
    p = play(tags=THOUGHTS, max_calls=4, calls_of={"search": 1})
    assert p.say("<think>a</think>", THINK) is Next.CALL
    p.see("seen")
    assert p.say("<think>b</think>", THINK) is Next.POLICY  # no text about calls
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    assert p.finish().answer == "Bob"


@pytest.mark.parametrize("text", ["<think> \n</think>", "no thought</think>", "<answer>a</think>"])
def test_an_empty_thought_is_corrected(play, text):
    p = play(tags=THOUGHTS)
    assert p.say(text, THINK) is Next.CORRECTION
    p.corrected()
    assert p.say("<answer>Bob</answer>", ANSWER) is Next.NOTHING
    t = p.finish()
    assert "That was neither a thought nor an answer." in t.response_text
    assert (t.searches, t.segments, t.well_formed) == ([], 2, False)


def test_an_answer_within_a_thought_is_one(play):
    p = play(tags=THOUGHTS)
    assert p.say("<think>it is <answer>Bob</answer>", ANSWER) is Next.NOTHING
    assert (p.finish().answer, p.finish().well_formed) == ("Bob", False)


def test_an_invented_observation_of_a_thought(play):
    p = play(tags=THOUGHTS)
    text = "<think>a<information>x</information></think>"
    assert p.say(text, THINK) is Next.CALL
    p.see("\n<information>\nx\n</information>\n")
    p.say("<answer>Bob</answer>", ANSWER)
    assert not p.finish().well_formed


def test_seconds_of_an_episode(play, monkeypatch):
    clock = iter([10.0, 12.5, 14.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    p = play()
    p.episode.begin()
    p.say("<search>q</search>", SEARCH)
    p.see("seen")
    p.episode.begin()  # again in a slot: the clock runs on
    p.say("<answer>Bob</answer>", ANSWER)
    monkeypatch.undo()
    t = p.finish()
    assert t.seconds == 4.0


def test_streams(play):
    """One a question, sample and episode; that of the first is what it has always been."""
    rules = play().episode._rules
    streams = {
        Episode(Question(id, "Who?", ("Bob",)), sample, [9], rules, number=number).stream
        for id in ("q1", "q2")
        for sample in (0, 1)
        for number in range(4)
    }
    assert len(streams) == 16
    assert (zlib.crc32(b"q1"), 1) in streams
