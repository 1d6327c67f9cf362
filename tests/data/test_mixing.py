"""Weighted mixtures: shares, epochs of each set, resuming."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.data.curriculum import Curriculum, CurriculumStream
from sr1_jax.data.mixing import schedule
from sr1_jax.data.prepared import Subset
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionStream

WEIGHTS = {"nq": 3.0, "hotpotqa": 1.0, "popqa": 2.0}


def questions(**counts):
    return [
        Question(f"{source}:train:{i}", "Who?", ("Ann",))
        for source, count in counts.items()
        for i in range(count)
    ]


SOURCE = questions(nq=30, hotpotqa=7, popqa=12)


def streams(source, seed=0, weights=WEIGHTS):
    """One of each kind."""
    yield QuestionStream(source, seed=seed, weights=weights)
    yield CurriculumStream(source, seed=seed, weights=weights, curriculum=Curriculum())


def sources(taken):
    return [question.source for question in taken]


def test_shares_are_those_of_the_weights_at_any_time():
    """Not on average alone: of any n draws a set has its share but for a question or two."""
    total = sum(WEIGHTS.values())
    for stream in streams(SOURCE):
        drawn = [source for _ in range(100) for source in sources(stream.take(11))]
        for start in range(0, 600, 37):
            for length in (6, 50, 200, 400):
                counts = Counter(drawn[start : start + length])
                for name, weight in WEIGHTS.items():
                    # Grain rounds weights to hundredths of the least.
                    assert abs(counts[name] - length * weight / total) < 2 + 0.005 * length


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(1, 3000))
def test_the_schedule_meets_any_weights(weights, count):
    named = {str(number): weight for number, weight in enumerate(weights)}
    drawn = schedule(named)
    counts = np.bincount([drawn[place] for place in range(count)], minlength=len(weights))
    wanted = count * np.array(weights) / sum(weights)
    assert np.all(np.abs(counts - wanted) < len(weights) + 0.01 * count)


def test_each_set_has_epochs_of_its_own():
    stream = QuestionStream(SOURCE, seed=4, weights=WEIGHTS)
    drawn = stream.take(400)
    sizes = {"nq": 30, "hotpotqa": 7, "popqa": 12}
    for name, size in sizes.items():
        mine = [question.id for question in drawn if question.source == name]
        epochs = [tuple(mine[start : start + size]) for start in range(0, len(mine), size)]
        whole = [epoch for epoch in epochs if len(epoch) == size]
        assert len(whole) >= 4
        assert all(sorted(epoch) == sorted(whole[0]) for epoch in whole)
        assert len({*whole}) == len(whole)


def test_the_order_of_a_set_does_not_depend_on_others():
    def of_nq(source, weights):
        taken = QuestionStream(source, seed=2, weights=weights).take(300)
        return [question.id for question in taken if question.source == "nq"][:60]

    wanted = of_nq(SOURCE, WEIGHTS)
    assert wanted == of_nq(questions(nq=30, musique=5), {"nq": 1, "musique": 1})
    assert wanted == of_nq(SOURCE, {"nq": 1, "hotpotqa": 0, "popqa": 0})


def test_sets_of_equal_size_have_different_orders():
    taken = QuestionStream(questions(a=40, b=40), seed=0, weights={"a": 1, "b": 1}).take(80)
    orders = [[q.id[1:] for q in taken if q.source == name] for name in "ab"]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_weight_0_leaves_a_set_out():
    for stream in streams(SOURCE, weights={"nq": 1, "hotpotqa": 0, "popqa": 1}):
        assert set(sources(stream.take(100))) == {"nq", "popqa"}


@pytest.mark.parametrize("seed", [0, 1])
def test_resuming_continues_exactly(seed):
    whole = QuestionStream(SOURCE, seed=seed, weights=WEIGHTS).take(500)
    for position in (1, 6, 99, 333):
        stream = QuestionStream(SOURCE, seed=seed, weights=WEIGHTS, position=position)
        assert stream.take(100) == whole[position : position + 100]
        assert stream.state() == {"position": position + 100}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"nq": 1, "hotpotqa": 1}, "data.weights has none for 'popqa': give every set a weight"),
        (
            {**WEIGHTS, "musique": 1},
            "data.weights names 'musique', of which there are no questions",
        ),
        (dict.fromkeys(WEIGHTS, 0), "data.weights are all 0"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    for stream in (QuestionStream, CurriculumStream):
        more = {} if stream is QuestionStream else {"curriculum": Curriculum()}
        with pytest.raises(ValueError, match=message):
            stream(SOURCE, seed=0, weights=weights, **more)


def test_a_set_that_a_filter_removed_needs_no_weight():
    left = Subset(SOURCE, [n for n, q in enumerate(SOURCE) if q.source != "popqa"])
    for stream in streams(left, weights={"nq": 1, "hotpotqa": 1}):
        assert Counter(sources(stream.take(40))) == {"nq": 20, "hotpotqa": 20}
    with pytest.raises(ValueError, match="names 'popqa', of which there are no questions"):
        QuestionStream(left, seed=0, weights=WEIGHTS)
