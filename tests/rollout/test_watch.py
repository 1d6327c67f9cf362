"""What somebody who watches an engine is told, while episodes run."""

import collections

import jax
import pytest
from flax import nnx

from sr1_jax.environment import SearchRecord
from sr1_jax.environment.watched import Began, Called, Shown, Wrote


class Heard:
    """Keeps what it is told, by episode."""

    def __init__(self):
        self.of = collections.defaultdict(list)

    def __call__(self, question, sample, event):
        self.of[question.id, sample].append(event)

    def events(self, trajectory, *kinds):
        told = self.of[trajectory.question_id, trajectory.sample]
        return [event for event in told if isinstance(event, kinds or object)]


def joined(events):
    return "".join(event.text for event in events)


@pytest.mark.parametrize(
    "changes",
    [{"decode_steps": 1, "slots": 1}, {"decode_steps": 3}, {"max_context_tokens": 70}],
)
def test_pieces_joined_are_the_texts_of_the_trajectory(
    make_engine, questions, assert_same, changes
):
    heard = Heard()
    run = make_engine(**changes).run(questions, seed=3, watch=heard)
    assert_same(make_engine(**changes).run(questions, seed=3), run)
    for trajectory in run:
        assert joined(heard.events(trajectory, Wrote)) == trajectory.policy_text
        assert joined(heard.events(trajectory, Wrote, Shown)) == trajectory.response_text
        assert heard.events(trajectory)[0] == Began([])
        called, shown = (heard.events(trajectory, kind) for kind in (Called, Shown))
        assert called == [Called(call.tag, call.request) for call in trajectory.calls]
        assert [(s.tag, s.record) for s in shown if s.tag] == [
            (call.tag, call.record) for call in trajectory.calls
        ]
    # All that can happen did: calls, corrective texts, several pieces a segment.
    shown = [event for t in run for event in heard.events(t, Shown)]
    assert {bool(event.tag) for event in shown} == {True, False}
    if "max_context_tokens" in changes:
        assert any(event.text == "" for event in shown)  # there was no room for it
    else:
        assert any("\ufffd" in t.policy_text or "é" in t.policy_text for t in run)
        assert max(len(heard.events(t, Wrote)) for t in run) > max(t.segments for t in run)


def test_events_come_while_the_episode_runs(make_engine, questions):
    """Not at its end: each with the decode call that made it."""
    engine, calls = make_engine(slots=1, decode_steps=2), []

    def watch(question, sample, event):
        calls.append(engine.stats["decode_calls"])

    engine.run(questions[:1], watch=watch)
    assert calls == sorted(calls) and len(set(calls)) == engine.stats["decode_calls"] + 1


def test_passages_of_the_prompt_are_told_first(make_engine, questions):
    heard = Heard()
    engine = make_engine(template="compact_rag", max_searches=0, passages=2)
    for trajectory in engine.run(questions[:3], watch=heard):
        assert trajectory.prompt_passages
        assert heard.events(trajectory)[0] == Began(trajectory.prompt_passages)


def test_what_was_read_is_shown_and_nothing_is_told_twice(make_engine, questions):
    """With one slot a reader takes that of the episode which waits for it."""
    heard = Heard()
    run = make_engine(reader="compact_reader", slots=1).run(questions[:6], seed=1, watch=heard)
    read = 0
    for trajectory in run:
        assert joined(heard.events(trajectory, Wrote, Shown)) == trajectory.response_text
        assert len(heard.events(trajectory, Began)) == 1
        for event in heard.events(trajectory, Shown):
            if isinstance(event.record, SearchRecord) and event.record.reading is not None:
                read += 1
    assert read


def test_an_answer_that_is_broken_off_leaves_no_trace(make_engine, questions, assert_same):
    engine = make_engine(slots=1, decode_steps=2)

    def watch(question, sample, event):
        if isinstance(event, Wrote):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(questions[:1], watch=watch)
    assert_same(engine.run(questions[:2]), make_engine().run(questions[:2]))


def test_kept_caches_change_nothing_but_what_is_prefilled(make_engine, questions, assert_same):
    """An engine that keeps them goes on in slots that hold the prompts of earlier runs."""
    keeping = make_engine(slots=1, keeps_caches=True)
    keeping.warm_up()
    keeping.prefill(questions[0])
    for seed, number in ((1, 3), (2, 3), (2, 0), (2, 5)):
        fresh = make_engine(slots=1)
        want = fresh.run(questions[number : number + 1], seed=seed)
        assert_same(keeping.run(questions[number : number + 1], seed=seed), want)
        assert keeping.stats["compilations"] == 0
        # All prompts of the template begin alike.
        saved = fresh.stats["prefilled_tokens"] - keeping.stats["prefilled_tokens"]
        assert saved > 5 and keeping.stats["forked_tokens"] == saved


def test_caches_are_not_kept_for_other_parameters_or_after_an_error(
    make_engine, questions, assert_same, tiny_decoder
):
    keeping = make_engine(slots=2, keeps_caches=True)
    fresh = make_engine(slots=2)
    first = fresh.run(questions[:2])
    assert_same(keeping.run(questions[:2]), first)
    other = jax.tree.map(lambda x: x * 0.5, nnx.state(tiny_decoder))
    want = make_engine(slots=2).run(questions[:2], params=other)
    assert_same(keeping.run(questions[:2], params=other), want)

    def watch(question, sample, event):
        if isinstance(event, Wrote):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keeping.run(questions[:2], watch=watch)
    again = keeping.run(questions[:2])
    assert_same(again, first)
    assert keeping.stats["forked_tokens"] == fresh.stats["forked_tokens"]
