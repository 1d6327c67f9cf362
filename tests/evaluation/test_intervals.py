"""Bootstrap intervals against exact enumeration, simulation, and SciPy."""

import itertools

import numpy as np
import pytest

from sr1_jax.evaluation.intervals import (
    Interval,
    bootstrap,
    bootstrap_macro,
    intervals_of,
    paired_difference,
    paired_macro_difference,
)


def enumerated(statistic, count):
    """The statistic of every draw of `count` questions with replacement, each equally likely."""
    return np.array([statistic(list(d)) for d in itertools.product(range(count), repeat=count)])


def assert_between_neighbours(found, exact, level):
    """An end of a drawn interval is the exact quantile, give or take the error of drawing."""
    for end, share in ((found.low, (1 - level) / 2), (found.high, (1 + level) / 2)):
        least, most = np.quantile(exact, [share - 0.012, share + 0.012])
        assert least - 1e-12 <= end <= most + 1e-12


@pytest.mark.parametrize("level", [0.6, 0.9])
def test_the_mean_of_all_draws(level):
    values = np.array([0.0, 0.3, 1.0, 1.2, 5.0])
    exact = enumerated(lambda draw: values[draw].mean(), 5)
    found = bootstrap(values, level=level, resamples=20_000)
    assert found.mean == pytest.approx(values.mean())
    assert_between_neighbours(found, exact, level)


def test_questions_are_drawn_with_all_their_samples():
    values = {"a": [1, 1, 1], "b": [0.0], "c": [0, 1, float("nan")], "d": [0.5, 0.25]}
    rows = [[v for v in row if v == v] for row in values.values()]

    def mean(draw):
        drawn = [value for q in draw for value in rows[q]]
        return sum(drawn) / len(drawn)

    exact = enumerated(mean, 4)
    found = bootstrap(values, level=0.8, resamples=20_000)
    assert found.mean == pytest.approx(mean(range(4)))
    assert_between_neighbours(found, exact, 0.8)
    # Copies of a value say nothing new.
    assert bootstrap({"a": [1] * 9, "b": [0] * 9, "c": [0] * 9}) == bootstrap([1, 0, 0])


def test_pairs_are_drawn_together():
    a, b = np.array([0.9, 0.1, 0.6, 1.0]), np.array([0.5, 0.2, 0.1, 0.8])
    exact = enumerated(lambda draw: a[draw].mean() - b[draw].mean(), 4)
    found = paired_difference(a, b, level=0.8, resamples=20_000)
    assert found.mean == pytest.approx((a - b).mean())
    assert_between_neighbours(found, exact, 0.8)
    # A constant gain is known exactly, whatever the questions.
    sure = paired_difference(b + 0.25, b)
    assert sure == pytest.approx((0.25, 0.25, 0.25)) and sure.resolved
    assert not paired_difference(a, a).resolved


def test_of_sets_each_counts_the_same_and_is_drawn_by_itself():
    one, two = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.7])
    exact = np.add.outer(
        enumerated(lambda draw: one[draw].mean(), 3), enumerated(lambda draw: two[draw].mean(), 2)
    )
    found = bootstrap_macro({"one": one, "two": two}, level=0.8, resamples=20_000)
    assert found.mean == pytest.approx((2 / 3 + 0.45) / 2)
    assert_between_neighbours(found, exact.ravel() / 2, 0.8)


def test_the_paired_macro_average():
    rng = np.random.default_rng(0)
    a = {"x": rng.random(3), "y": rng.random(2)}
    b = {"y": rng.random(2), "x": rng.random(3)}
    differences = [a[name] - b[name] for name in ("x", "y")]
    exact = np.add.outer(
        *(enumerated(lambda draw, d=d: d[draw].mean(), len(d)) for d in differences)
    )
    found = paired_macro_difference(a, b, level=0.8, resamples=20_000)
    assert found.mean == pytest.approx(np.mean([d.mean() for d in differences]))
    assert_between_neighbours(found, exact.ravel() / 2, 0.8)


def test_questions_that_one_left_out_do_not_count():
    a, b = {"q1": 1, "q2": 0, "q3": 1}, {"q1": 0, "q3": 1, "q4": 1}
    found = paired_macro_difference([a], [b], common=True)
    assert found == paired_macro_difference([[1, 1]], [[0, 1]])
    with pytest.raises(ValueError, match="no question 'q2'"):
        paired_macro_difference([a], [b])


def test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).beta(0.4, 0.6, size=60)
    ours = bootstrap(values, resamples=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(4)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.003)


def test_coverage():
    """Of intervals of 95 % about as many hold the truth; of samples that agree, too."""
    rng, held, trials = np.random.default_rng(5), 0, 400
    for _ in range(trials):
        easy = rng.random(80) < 0.35  # of a question all three samples are right, or none
        found = bootstrap(np.repeat(easy[:, None], 3, 1), resamples=600)
        held += found.low <= 0.35 <= found.high
    # Three standard errors of the share, and the little by which small sets are too narrow.
    assert 0.95 - 0.01 - 3 * (0.95 * 0.05 / trials) ** 0.5 <= held / trials <= 0.985


def test_paired_intervals_are_narrower():
    rng = np.random.default_rng(6)
    hardness = rng.random(400)
    a, b = (rng.random(400) < np.clip(hardness + shift, 0, 1) for shift in (0.05, 0.0))
    paired = paired_difference(a, b)
    alone = np.hypot(bootstrap(a).half_width, bootstrap(b).half_width)
    assert paired.half_width < 0.9 * alone


def test_several_scores_at_once_equal_each_by_itself():
    rng = np.random.default_rng(7)
    one, two = (
        {"em": rng.random((n, 2)), "gold": rng.random(n), "none": np.full(n, np.nan)}
        for n in (30, 20)
    )
    one["gold"][3:9] = np.nan
    found = intervals_of([one], resamples=500)
    assert list(found) == ["em", "gold"]
    for name, interval in found.items():
        assert interval == pytest.approx(bootstrap(one[name], resamples=500))
    found = intervals_of([one, two | {"other": rng.random(20)}], resamples=500)
    assert list(found) == ["em", "gold"]
    for name, interval in found.items():
        both = bootstrap_macro([one[name], two[name]], resamples=500)
        assert interval == pytest.approx(both)


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(8).random(50)
    assert bootstrap(values) == bootstrap(list(values)) == bootstrap(dict(enumerate(values)))
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert bootstrap([1.0]) == Interval(1.0, 1.0, 1.0)


def test_memory_is_bounded_whatever_the_number_of_questions(monkeypatch):
    from sr1_jax.evaluation import intervals

    values = np.random.default_rng(9).random(50)
    whole = bootstrap(values, resamples=100)
    monkeypatch.setattr(intervals, "_CELLS", 120)
    assert bootstrap(values, resamples=100) == pytest.approx(whole)


def test_of_many_questions_fewer_draws_are_enough():
    values = np.random.default_rng(10).random(10_001)
    found = bootstrap(values)
    assert found == bootstrap(values, resamples=2_000)
    error = values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=error / 8)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=error / 8)
    assert bootstrap(values[:-9_001]) == bootstrap(values[:-9_001], resamples=10_000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap([]), "has no value"),
        (lambda: bootstrap([float("nan")]), "has no value"),
        (lambda: bootstrap_macro([]), "There is no set"),
        (lambda: bootstrap([1.0], level=1.0), "level must lie between 0 and 1, not 1.0"),
        (lambda: bootstrap([1.0], resamples=0), "resamples must be at least 1, not 0"),
        (lambda: paired_difference([1, 0], [1]), "2 questions do not pair with 1"),
        (lambda: paired_difference({"a": 1}, {"b": 1}), "second result has no question 'a'"),
        (lambda: paired_difference({"a": 1}, {"a": 1, "b": 1}), "first result has no question 'b'"),
        (
            lambda: paired_macro_difference({"nq": [1]}, {"hp": [1]}),
            "second result has no set 'nq'",
        ),
        (lambda: paired_macro_difference([[1]], [[1], [1]]), "1 sets of questions do not pair"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
