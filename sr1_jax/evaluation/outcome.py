"""The result of one method on one set of questions, from the trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.answering import Asked
from sr1_jax.evaluation.results import scores_with_intervals
from sr1_jax.evaluation.score_table import ScoreTable, score_table
from sr1_jax.evaluation.scores import clustered_standard_error, score_of_those_run
from sr1_jax.rollout.stats import as_metrics


def outcome(
    asked: Asked,
    questions: Sequence[Question],
    *,
    about: Mapping[str, Any],
    retrieves: bool,
    judged: Sequence[bool] | None = None,
) -> tuple[dict[str, Any], ScoreTable]:
    """The result for JSON, and the scores by trajectory.

    Args:
        asked: what came of asking.
        questions: all that were asked.
        about: what the result is of: the keys that it begins with.
        retrieves: whether the method retrieves.
        judged: what a judge says of each trajectory, if one was asked.

    Raises:
        ValueError: no question fits.
    """
    scores = score_of_those_run(asked.trajectories, questions)
    table = score_table(asked.trajectories, questions, retrieves=retrieves, judged=judged)
    stats = as_metrics(asked.stats)
    if asked.taken_up:
        stats["rollout/taken_up"] = float(asked.taken_up)
    ids = [trajectory.question_id for trajectory in asked.trajectories]
    return {
        **about,
        "count": len(set(ids)),
        "seconds": asked.seconds,
        **scores_with_intervals([table]),
        **scores,
        **stats,
        "em_standard_error": clustered_standard_error(table.columns["em"].tolist(), ids),
    }, table
