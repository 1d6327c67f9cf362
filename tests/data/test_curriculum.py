"""The curriculum: its formula, its draws, its state."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.data.curriculum import Curriculum, CurriculumStream
from sr1_jax.data.questions import Question


def questions(count):
    return [Question(f"nq:train:{i}", "Who?", ("Ann",)) for i in range(count)]


def stream_of(count, seed=0, state=None, **settings):
    return CurriculumStream(
        questions(count), seed=seed, curriculum=Curriculum(**settings), state=state
    )


def number(question):
    return int(question.id.split(":")[2])


def ask_all(stream, rates):
    """Asks every question once and tells the given rates, in one round."""
    taken = stream.take(len(rates))
    stream.observe(taken, [rates[number(question)] for question in taken])


# The formula


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0.01, 3),
    st.floats(0.001, 1),
)
def test_weights_are_the_formula(rates, target, width, floor):
    found = Curriculum(target=target, width=width, floor=floor).weights(np.array(rates))
    for rate, weight in zip(rates, found, strict=True):
        bell = math.exp(-(((rate - target) / width) ** 2) / 2)
        assert weight == pytest.approx(floor + (1 - floor) * bell, rel=1e-12)
        assert floor <= weight <= 1


def test_weights_by_hand():
    found = Curriculum(target=0.5, width=0.25, floor=0.1).weights(np.array([0.5, 0.25, 1.0]))
    assert found == pytest.approx([1.0, 0.1 + 0.9 * 0.60653066, 0.1 + 0.9 * 0.13533528])


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8), st.floats(0.1, 1))
def test_rates_are_exponential_averages(shares, momentum):
    stream = stream_of(1, momentum=momentum)
    wanted = shares[0]
    for place, share in enumerate(shares):
        stream.observe(stream.take(1), [share])
        if place:
            wanted = (1 - momentum) * wanted + momentum * share
    assert stream.rate_Q[0] == pytest.approx(wanted, abs=1e-6)


def test_a_question_that_comes_twice_counts_twice():
    stream = stream_of(2, momentum=0.5)
    taken = stream.take(4)
    assert Counter(map(number, taken)) == {0: 2, 1: 2}
    stream.observe(taken, [1.0, 1.0, 0.0, 0.0])
    assert stream.rate_Q.tolist() == [0.5, 0.5]


# Draws


def chi_square(observed, wanted):
    return (((observed - wanted) ** 2) / wanted).sum()


def test_draws_follow_the_weights():
    """One draw at a time, 6,000 of 8 questions: chi-square with 7 degrees of freedom."""
    rates = np.linspace(0, 1, 8)
    counts = np.zeros(8)
    stream = stream_of(8, momentum=1.0, width=0.3)
    ask_all(stream, rates)
    for _ in range(6000):
        taken = stream.take(1)
        counts[number(taken[0])] += 1
        stream.observe(taken, [rates[number(taken[0])]])
    weights = Curriculum(width=0.3).weights(rates)
    assert chi_square(counts, 6000 * weights / weights.sum()) < 24.3  # one in a thousand is larger


def test_draws_without_replacement_follow_an_oracle():
    """Pairs in the order of their weights: an exact count of successive draws."""
    rates = np.array([0.0, 0.25, 0.5, 1.0])
    weights = Curriculum(floor=0.2).weights(rates)
    pairs = Counter()
    for seed in range(4000):
        stream = stream_of(4, seed=seed, floor=0.2)
        ask_all(stream, rates)
        pairs[frozenset(map(number, stream.take(2)))] += 1
    total = weights.sum()
    wanted = {
        frozenset((a, b)): weights[a] / total * weights[b] / (total - weights[a])
        + weights[b] / total * weights[a] / (total - weights[b])
        for a in range(4)
        for b in range(a)
    }
    assert sum(wanted.values()) == pytest.approx(1)
    observed = np.array([pairs[pair] for pair in wanted])
    assert chi_square(observed, 4000 * np.array([*wanted.values()])) < 20.5  # 5 degrees of freedom


def test_nothing_comes_twice_until_rates_are_told():
    """As when groups of equal rewards are replaced by further rollouts."""
    stream = stream_of(20)
    ask_all(stream, np.full(20, 0.5))
    taken = [*stream.take(8), *stream.take(8), *stream.take(4)]
    assert len({question.id for question in taken}) == 20
    # What was passed over and never rolled out is not told.
    stream.observe(taken[:3], [1.0] * 3)
    assert len({question.id for question in stream.take(20)}) == 20


def test_more_than_there_are():
    counts = Counter(map(number, stream_of(3).take(7)))
    assert sorted(counts.values()) == [2, 2, 3]


@pytest.mark.parametrize("new", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_new_questions_have_their_share(new, batch):
    stream = stream_of(4000, new=new)
    stream.observe(taken := stream.take(400), [0.5] * len(taken))
    asked = {question.id for question in taken}
    fresh = total = 0
    for _ in range(240 // batch):
        taken = stream.take(batch)
        fresh += sum(question.id not in asked for question in taken)
        asked |= {question.id for question in taken}
        total += len(taken)
        stream.observe(taken, [0.5] * len(taken))
    assert fresh == pytest.approx(new * total, abs=1)


def test_new_questions_are_all_there_are_at_first_and_then_none():
    stream = stream_of(40, new=0.25)
    taken = stream.take(30)
    assert len({question.id for question in taken}) == 30
    stream.observe(taken, [0.5] * 30)
    left = {f"nq:train:{i}" for i in range(40)} - {question.id for question in taken}
    for _ in range(10):
        taken = stream.take(8)
        left -= {question.id for question in taken}
        stream.observe(taken, [0.5] * 8)
    assert not left
    assert len(stream.take(8)) == 8


def test_new_ones_are_drawn_alike():
    counts = Counter(number(q) for seed in range(2000) for q in stream_of(10, seed=seed).take(2))
    observed = np.array([counts[i] for i in range(10)])
    assert chi_square(observed, np.full(10, 400)) / (8 / 10 * 10 / 9) < 27.9


def test_what_is_near_the_target_is_asked_more():
    stream = stream_of(300, new=0.0, width=0.1)
    rates = np.repeat([0.0, 0.5, 1.0], 100)
    ask_all(stream, rates)
    counts = Counter()
    for _ in range(50):
        taken = stream.take(6)
        counts.update(rates[number(question)] for question in taken)
        stream.observe(taken, [rates[number(question)] for question in taken])
    assert counts[0.5] > 0.8 * 300 and min(counts[0.0], counts[1.0]) > 0


def test_a_floor_next_to_nothing_warns_of_nothing():
    stream = stream_of(6, floor=1e-320, width=1e-3)
    ask_all(stream, np.array([0.0, 0.0, 0.5, 1.0, 1.0, 1.0]))
    assert len({question.id for question in stream.take(6)}) == 6


# State


def measured(question, step):
    return ((number(question) * 7 + step) % 5) / 4


def run(stream, steps, batch=6):
    ids = []
    for step in steps:
        taken = stream.take(batch)
        ids.append([question.id for question in taken])
        stream.observe(taken, [measured(question, step) for question in taken])
    return ids


def test_resuming_continues_exactly():
    whole = run(stream_of(50, seed=3), range(30))
    for done in (1, 7, 29):
        stream = stream_of(50, seed=3)
        assert run(stream, range(done)) == whole[:done]
        state = json.loads(json.dumps(stream.state()))
        again = stream_of(50, seed=3, state=state)
        assert again.position == stream.position == 6 * done
        np.testing.assert_array_equal(again.rate_Q, stream.rate_Q)
        assert run(again, range(done, 30)) == whole[done:]
    assert whole != run(stream_of(50, seed=4), range(30))


def test_rates_decide():
    """Another rate, another draw: the state is not the position alone."""
    one, other = stream_of(50), stream_of(50)
    for stream, rate in ((one, 0.5), (other, 0.0)):
        taken = stream.take(25)
        stream.observe(taken, [rate if number(q) % 2 else 1.0 for q in taken])
    assert [q.id for q in one.take(20)] != [q.id for q in other.take(20)]


def test_the_state_is_small():
    stream = stream_of(200_000)
    assert len(json.dumps(stream.state())) < 3000
    taken = stream.take(512)
    stream.observe(taken, [measured(question, 0) for question in taken])
    assert len(json.dumps(stream.state())) < 6000


def test_a_state_of_other_questions_is_refused():
    state = stream_of(5).state()
    with pytest.raises(ValueError, match="saved for 5 questions, now there are 6"):
        stream_of(6, state=state)


def test_a_state_without_rates_starts_without():
    """Of a run before there was a curriculum."""
    stream = stream_of(5, state={"position": 40})
    assert stream.position == 40 and np.isnan(stream.rate_Q).all()


def test_metrics():
    stream = stream_of(8)
    assert stream.metrics() == {"curriculum/asked": 0.0}
    taken = stream.take(4)
    stream.observe(taken, [0.0, 0.5, 0.75, 1.0])
    assert stream.metrics() == {
        "curriculum/asked": 0.5,
        "curriculum/rate": 0.5625,
        "curriculum/solved": 0.25,
        "curriculum/unsolved": 0.25,
    }


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="the source is empty"):
        stream_of(0)
    with pytest.raises(ValueError, match="seed must be"):
        stream_of(3, seed=-1)
    with pytest.raises(ValueError, match="At least 1 question has to be taken, not 0"):
        stream_of(3).take(0)
