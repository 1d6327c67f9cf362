"""Scores of a set of trajectories."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.rewards import exact_match, f1_score, substring_match


def score(
    trajectories: Sequence[Trajectory], hops: Sequence[int] | None = None
) -> dict[str, float]:
    """Means over trajectories.

    Args:
        trajectories: at least one.
        hops: number of hops of each question, where it is known; adds exact match by hops.

    Returns:
        em, f1, substring (shares), searches and segments (per question), response_tokens and
        policy_tokens (per response), well_formed, and a share of each status.
    """
    rows = collections.defaultdict(list)
    for t in trajectories:
        rows["em"].append(exact_match(t.answer, t.golden_answers))
        rows["f1"].append(f1_score(t.answer, t.golden_answers))
        rows["substring"].append(substring_match(t.answer, t.golden_answers))
        rows["searches"].append(len(t.searches))
        rows["segments"].append(t.segments)
        rows["response_tokens"].append(len(t.ids) - t.prompt_length)
        rows["policy_tokens"].append(int(t.mask.sum()))
        rows["well_formed"].append(t.well_formed)
        for status in ("answered", "truncated", "no_answer"):
            rows[status].append(t.status == status)
    means = {key: float(np.mean(values)) for key, values in rows.items()}
    for count in sorted(set(hops or ())):
        chosen = [em for em, n in zip(rows["em"], hops) if n == count]
        means[f"em_{count}_hop"] = float(np.mean(chosen))
    return means


def score_of_those_run(
    trajectories: Sequence[Trajectory], questions: Sequence[Question]
) -> dict[str, float]:
    """`score` where some questions were left out (rollout.long_prompts="skip").

    Args:
        trajectories: one a question that was run.
        questions: all, whose prompts fit or not.

    Raises:
        ValueError: none was run.
    """
    if not trajectories:
        raise ValueError(
            f"None of {len(questions)} questions fits; raise rollout.max_context_tokens."
        )
    by_id = {question.id: question for question in questions}
    return score(trajectories, hops_of([by_id[t.question_id] for t in trajectories]))


def hops_of(questions) -> list[int] | None:
    """Number of hops of each question, or None where the data does not say."""
    hops = [question.metadata.get("hops") for question in questions]
    return None if None in hops else hops


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent questions."""
    return float(np.sqrt(share * (1 - share) / count))
