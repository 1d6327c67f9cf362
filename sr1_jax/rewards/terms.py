"""The terms of a reward by name: each a function of a trajectory and its question.

A term of a user's own is a function (trajectory, question) -> number, or one number for each
segment that the policy wrote. With the attribute `batched = True` it gets lists of both and returns
a list. With a method `counts() -> dict of totals` what they grow by is logged as rollout/<name>.
reward.terms names it by its import path, module:function. Terms with a value a segment: `turns`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from sr1_jax.rewards import turns
from sr1_jax.rewards.format import has_final_format, outcome_reward
from sr1_jax.rewards.judge import Item, Judge
from sr1_jax.rewards.matching import METRICS, f1_score, substring_match
from sr1_jax.rewards.retrieval import gold_segment, queries_of

Term = Callable[[Any, Any], Any]


def matches(metric: str) -> Term:
    """The answer's score by a metric of `METRICS`."""

    def term(trajectory: Any, question: Any) -> float:
        return float(METRICS[metric](trajectory.answer, question.golden_answers))

    return term


def matches_with_format(metric: str, config: Any) -> Term:
    """The published table of answer, format and retrieval, see `outcome_reward`."""

    def term(trajectory: Any, question: Any) -> float:
        return outcome_reward(
            trajectory.answer,
            question.golden_answers,
            trajectory.well_formed,
            retrieved=bool(config.retrieval_weight) and retrieval(trajectory, question) > 0,
            metric=metric,
            format_weight=config.format_weight,
            final_format_weight=config.final_format_weight,
            retrieval_weight=config.retrieval_weight,
        )

    return term


def f1_refine(trajectory: Any, question: Any, *, weight: float) -> float:
    """F1 where it is above 0; else `weight` if a refine block holds a golden answer, as cover-EM.

    Source: AutoRefine (arXiv 2505.11277), whose prompt asks for `<refine>…</refine>` after reading.
    Only what the policy wrote counts, not what it read.

    Args:
        trajectory: any.
        question: its golden answers.
        weight: published as 0.1.
    """
    score = f1_score(trajectory.answer, question.golden_answers)
    if score > 0:
        return score
    blocks = _refine_blocks(trajectory.policy_text)
    return weight * any(substring_match(block, question.golden_answers) for block in blocks)


def _refine_blocks(text: str) -> list[str]:
    """Contents of the closed blocks, from the innermost opening tag; linear in the length."""
    parts = text.split("</refine>")[:-1]
    return [part.rsplit("<refine>", 1)[1] for part in parts if "<refine>" in part]


def well_formed(trajectory: Any, question: Any) -> float:
    """1 for a response that keeps to the protocol all along."""
    return float(trajectory.well_formed)


def ill_formed(trajectory: Any, question: Any) -> float:
    """1 for a response that does not keep to the protocol: give it a negative weight."""
    return 1.0 - well_formed(trajectory, question)


def final_format(trajectory: Any, question: Any) -> float:
    """1 for an episode that ended in a closed answer block that is not blank."""
    return float(has_final_format(trajectory.answer))


def searched(trajectory: Any, question: Any) -> float:
    """1 for an episode with at least one search."""
    return float(any(queries_of(call) for call in trajectory.calls))


def retrieval(trajectory: Any, question: Any) -> float:
    """1 for an episode in which a search brought back gold, see `gold_segment`."""
    return float(gold_segment(trajectory, question) is not None)


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


class JudgedAnswers:
    """1 for an answer that a language model finds right.

    Args:
        judge: that is asked, for all trajectories of a step together.
    """

    batched = True

    def __init__(self, judge: Judge):
        self._judge = judge
        self.counts = judge.counts

    def __call__(self, trajectories: Sequence[Any], questions: Sequence[Any]) -> list[float]:
        items = [
            Item(question.question, trajectory.answer, question.golden_answers)
            for trajectory, question in zip(trajectories, questions)
        ]
        return [float(verdict) for verdict in self._judge.scores(items)]


# Terms that read the weights of the published table.
WITH_FORMAT = tuple(f"{metric}_format" for metric in METRICS)

# Terms that look at searches and at nothing else.
OF_SEARCHES = ("searched", "retrieval", "retrieval_at_search", "search_cost")

# Each makes its term from the reward section of the settings and the budget of a trajectory. A new
# term is one line here.
TERMS: dict[str, Callable[[Any, int], Term]] = {
    **{metric: lambda config, budget, metric=metric: matches(metric) for metric in METRICS},
    **{
        f"{metric}_format": lambda config, budget, metric=metric: matches_with_format(
            metric, config
        )
        for metric in METRICS
    },
    "f1_refine": lambda config, budget: functools.partial(f1_refine, weight=config.refine_weight),
    "judge": lambda config, budget: JudgedAnswers(Judge.of(config.judge)),
    "well_formed": lambda config, budget: well_formed,
    "ill_formed": lambda config, budget: ill_formed,
    "final_format": lambda config, budget: final_format,
    "searched": lambda config, budget: searched,
    "retrieval": lambda config, budget: retrieval,
    "retrieval_at_search": lambda config, budget: turns.retrieval_at_search,
    "search_cost": lambda config, budget: functools.partial(
        turns.search_cost, free=config.free_searches
    ),
    "repeated_queries": lambda config, budget: turns.repeated_queries,
    "invalid_segments": lambda config, budget: turns.invalid_segments,
    "truncated": lambda config, budget: truncated,
    "overlong": lambda config, budget: functools.partial(
        overlong, buffer=config.overlong_buffer, budget=budget
    ),
}

# Two names of one term, of which a reward may have one.
SAME = (("substring", "cover_em"), ("substring_format", "cover_em_format"))
