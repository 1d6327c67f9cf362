"""The terms of a reward by name: each a function of a trajectory and its question.

A term of a user's own is a function (trajectory, question) -> number, or one number for each
segment that the policy wrote. With the attribute `batched = True` it gets lists of both and returns
a list. reward.terms names it by its import path, module:function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sr1_jax.rewards.format import outcome_reward
from sr1_jax.rewards.matching import METRICS

Term = Callable[[Any, Any], Any]


def matches(metric: str) -> Term:
    """The answer's score by a metric of `METRICS`."""

    def term(trajectory: Any, question: Any) -> float:
        return float(METRICS[metric](trajectory.answer, question.golden_answers))

    return term


def matches_with_format(metric: str, format_weight: float) -> Term:
    """The published table of answer and format, see `outcome_reward`."""

    def term(trajectory: Any, question: Any) -> float:
        return outcome_reward(
            trajectory.answer,
            question.golden_answers,
            trajectory.well_formed,
            metric=metric,
            format_weight=format_weight,
        )

    return term


def well_formed(trajectory: Any, question: Any) -> float:
    """1 for a response that keeps to the protocol."""
    return float(trajectory.well_formed)


def truncated(trajectory: Any, question: Any) -> float:
    """1 for an episode that ran out of budget: give it a negative weight."""
    return float(trajectory.status == "truncated")


def overlong(trajectory: Any, question: Any, *, buffer: int, budget: int) -> float:
    """How far a trajectory reaches into the last `buffer` tokens of its budget, from 0 to 1.

    Source: the soft penalty of DAPO (arXiv 2503.14476, equation 13), to be given a negative weight.
    An episode that ran out of budget counts as one that fills it: ending in time never costs more.

    Args:
        trajectory: any.
        question: not looked at.
        buffer: tokens; 0: length never costs anything.
        budget: tokens a trajectory may have, prompt included.
    """
    if not buffer:
        return 0.0
    if trajectory.status == "truncated":
        return 1.0
    return min(max((len(trajectory.ids) - (budget - buffer)) / buffer, 0.0), 1.0)


# Each makes its term from the reward section of the settings and the budget of a trajectory. A new
# term is one line here.
TERMS: dict[str, Callable[[Any, int], Term]] = {
    "em": lambda config, budget: matches("em"),
    "f1": lambda config, budget: matches("f1"),
    "substring": lambda config, budget: matches("substring"),
    "em_format": lambda config, budget: matches_with_format("em", config.format_weight),
    "f1_format": lambda config, budget: matches_with_format("f1", config.format_weight),
    "substring_format": lambda config, budget: matches_with_format(
        "substring", config.format_weight
    ),
    "well_formed": lambda config, budget: well_formed,
    "truncated": lambda config, budget: truncated,
    "overlong": lambda config, budget: functools.partial(
        overlong, buffer=config.overlong_buffer, budget=budget
    ),
}
