"""Intervals of means, and of differences between two results on the same questions.

Percentile bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13): the
interval holds the middle of the means of many draws, each of as many questions as there are,
with replacement. Samples of one question depend on each other, so a question is drawn with all its
values (the cluster bootstrap of Davison and Hinkley 1997, section 3.8). With few questions the
interval is a little too narrow, as the variance of a resample is that of the data with n in place
of n - 1.

Two results on the same questions are drawn together: what one question is harder than another then
cancels out of their difference. In a macro average each set counts the same, and its questions are
drawn within the set.

Values of questions are a mapping of question id -> number, or numbers of its samples; or a sequence
of these, where order stands for the id. NaN is no value, as for gold passages of a question of
which none are known. All draws come from `seed`: the same values give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Numbers = float | Sequence[float] | np.ndarray
Values = Mapping[str, Numbers] | Sequence[Numbers] | np.ndarray

LEVEL = 0.95
# Draws: of few questions, and of many, which take long and whose means are close to normal.
RESAMPLES, RESAMPLES_OF_MANY = 10_000, 2_000
_MANY = 10_000
# Of the table of draws, [draws, questions], so many numbers are in memory at a time.
_CELLS = 1 << 22


class Interval(NamedTuple):
    """An estimate and its interval.

    Attributes:
        mean: of the values, each counting the same; of sets the mean of their means.
        low: end of the interval.
        high: end of the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval, what tables show as ±."""
        return (self.high - self.low) / 2

    @property
    def resolved(self) -> bool:
        """Of a difference: whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def bootstrap(
    values_by_question: Values,
    *,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of values and its interval, clustered by question.

    Args:
        values_by_question: see the module.
        level: share of the draws that the interval holds, between 0 and 1.
        resamples: draws; None: 10,000, or of more than 10,000 questions 2,000, which is enough to
            place the ends within a sixteenth of a standard error.
        seed: of the draws.

    Raises:
        ValueError: there is no value.
    """
    return bootstrap_macro([values_by_question], level=level, resamples=resamples, seed=seed)


def bootstrap_macro(
    sets: Mapping[str, Values] | Iterable[Values],
    *,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """The mean in which each set of questions counts the same, and its interval.

    Args:
        sets: values by question of each set, perhaps by its name.
        level: see `bootstrap`.
        resamples: see `bootstrap`.
        seed: see `bootstrap`.

    Raises:
        ValueError: there is no set, or one without a value.
    """
    tables = [_table(values) for values in _listed(sets)]
    return _interval([[table] for table in tables], level, resamples, seed)


def paired_difference(
    a: Values,
    b: Values,
    *,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """The mean of `a` less that of `b`, on the same questions, and its interval.

    Args:
        a: values by question.
        b: of the same questions; the number of samples may differ.
        level: see `bootstrap`.
        resamples: see `bootstrap`.
        seed: see `bootstrap`.

    Raises:
        ValueError: the questions differ; names one. Or there is no value.
    """
    return paired_macro_difference([a], [b], level=level, resamples=resamples, seed=seed)


def paired_macro_difference(
    a: Mapping[str, Values] | Iterable[Values],
    b: Mapping[str, Values] | Iterable[Values],
    *,
    common: bool = False,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> Interval:
    """The macro average of `a` less that of `b`, on the same sets of questions.

    Args:
        a: values by question of each set, perhaps by its name.
        b: of the same sets.
        common: whether questions that one of both lacks are left out instead of refused: with
            rollout.long_prompts="skip" a method leaves out what does not fit its prompt, and may
            fit another's.
        level: see `bootstrap`.
        resamples: see `bootstrap`.
        seed: see `bootstrap`.

    Raises:
        ValueError: sets or questions differ; names one. Or a set has no value.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        _check_same_keys(a, b, "set")
        b = [b[name] for name in a]
    a, b = _listed(a), _listed(b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} sets of questions do not pair with {len(b)}.")
    pairs = []
    for ours, theirs in zip(a, b):
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            if common:
                ours = {id: value for id, value in ours.items() if id in theirs}
            else:
                _check_same_keys(ours, theirs, "question")
            theirs = {id: theirs[id] for id in ours}
        elif len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} questions do not pair with {len(theirs)}.")
        pairs.append([_table(ours), _table(theirs)])
    return _interval(pairs, level, resamples, seed)


def intervals_of(
    sets: Sequence[Mapping[str, Values]],
    *,
    level: float = LEVEL,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Interval]:
    """`bootstrap_macro` of several scores at once; of one set it is `bootstrap`.

    Args:
        sets: of each set, by name of the score, values by question. The scores of a set name the
            same questions in one order. A score without a value in some set is left out.
        level: see `bootstrap`.
        resamples: see `bootstrap`.
        seed: see `bootstrap`.
    """
    _check(level, resamples, sets)
    tables = [{name: _table(values) for name, values in scores.items()} for scores in sets]
    names = [n for n in tables[0] if all(n in one and one[n][1].sum() for one in tables)]
    if not names:
        return {}
    resamples = resamples or _draws_for(sum(one[names[0]].shape[1] for one in tables))
    means = dict.fromkeys(names, 0.0)
    drawn = {name: np.zeros(resamples) for name in names}
    for number, one in enumerate(tables):
        rng = np.random.default_rng([seed, number])
        for name, found in zip(names, _drawn([one[name] for name in names], resamples, rng)):
            means[name] += _mean(one[name])
            drawn[name] += found
    count = len(sets)
    return {n: Interval(means[n] / count, *_middle(drawn[n] / count, level)) for n in names}


def _interval(
    sets: Sequence[Sequence[np.ndarray]], level: float, resamples: int | None, seed: int
) -> Interval:
    """The average over sets of a mean, or of the difference of two, and its interval."""
    _check(level, resamples, sets)
    resamples = resamples or _draws_for(sum(tables[0].shape[1] for tables in sets))
    estimate, drawn_R = 0.0, np.zeros(resamples)
    for number, tables in enumerate(sets):
        if any(not table[1].sum() for table in tables):
            raise ValueError("A set of questions has no value.")
        rng = np.random.default_rng([seed, number])
        means = _drawn(tables, resamples, rng)
        signs = (1.0, -1.0)[: len(tables)]
        estimate += sum(sign * _mean(table) for sign, table in zip(signs, tables))
        drawn_R += sum(sign * one for sign, one in zip(signs, means))
    count = len(sets)
    return Interval(estimate / count, *_middle(drawn_R / count, level))


def _draws_for(questions: int) -> int:
    return RESAMPLES if questions <= _MANY else RESAMPLES_OF_MANY


def _check(level: float, resamples: int | None, sets: Sequence) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}.")
    if resamples is not None and resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}.")
    if not sets:
        raise ValueError("There is no set of questions.")


def _listed(sets: Mapping[str, Values] | Iterable[Values]) -> list[Values]:
    return list(sets.values()) if isinstance(sets, Mapping) else list(sets)


def _table(values: Values) -> np.ndarray:
    """float64 [2, questions]: sum and number of the values of each question, less NaN."""
    listed = list(values.values()) if isinstance(values, Mapping) else values
    if not len(listed):
        return np.zeros((2, 0))
    if isinstance(listed, np.ndarray) or not any(np.ndim(one) for one in listed):
        # All have one number of values.
        rows = np.asarray(listed, np.float64).reshape(len(listed), -1)
        known = ~np.isnan(rows)
        return np.stack([np.where(known, rows, 0.0).sum(1), known.sum(1).astype(np.float64)])
    parts = [np.asarray(one, np.float64).reshape(-1) for one in listed]
    parts = [part[~np.isnan(part)] for part in parts]
    return np.array([[part.sum() for part in parts], [len(part) for part in parts]], np.float64)


def _mean(table: np.ndarray) -> float:
    return float(table[0].sum() / table[1].sum())


def _drawn(
    tables: Sequence[np.ndarray], resamples: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """float64 [resamples] for each table: its means over the same draws of questions.

    A draw in which a table has no value, as none of the few questions with one was drawn, takes the
    mean of all.
    """
    stacked_KQ = np.concatenate(tables)
    questions = stacked_KQ.shape[1]
    rows = max(1, _CELLS // questions)
    sums = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        picks = rng.integers(questions, size=(count, questions))
        # How often each draw has each question: sums are then one product of matrices.
        flat = (picks + questions * np.arange(count)[:, None]).ravel()
        times_RQ = np.bincount(flat, minlength=count * questions).reshape(count, questions)
        sums.append(times_RQ.astype(np.float64) @ stacked_KQ.T)
    sums_RK = np.concatenate(sums)
    means = []
    for number, table in enumerate(tables):
        total_R, count_R = sums_RK[:, 2 * number], sums_RK[:, 2 * number + 1]
        none_R = count_R == 0
        means.append(np.where(none_R, _mean(table), total_R / np.where(none_R, 1.0, count_R)))
    return means


def _middle(drawn_R: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_same_keys(a: Mapping[str, object], b: Mapping[str, object], what: str) -> None:
    for ours, theirs, where in ((a, b, "second"), (b, a, "first")):
        for key in ours:
            if key not in theirs:
                raise ValueError(
                    f"The {where} result has no {what} {key!r}: differences are taken between "
                    f"results on the same {what}s."
                )
