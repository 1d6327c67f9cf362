"""The published reward for an answer and its format (arXiv 2505.15117)."""

from __future__ import annotations

from collections.abc import Iterable

from sr1_jax.rewards.matching import METRICS


def outcome_reward(
    answer: str | None,
    golden_answers: str | Iterable[str],
    well_formed: bool,
    *,
    metric: str = "em",
    format_weight: float = 0.0,
) -> float:
    """Score of an answer, with an optional share w = format_weight for the response's format.

    Source: the format reward of arXiv 2505.15117. With score 1 for correct and 0 for wrong:

                     well formed    ill-formed
        correct           1            1 - w
        wrong             w              0

    For a graded metric (F1) the same table reads max(score, w) and max(score - w, 0): a partly
    right answer never earns less than a wrong one of the same format, and nothing is negative.

    Args:
        answer: the extracted answer, or None if the response holds none (score 0).
        golden_answers: one string or a non-empty list of strings.
        well_formed: whether the whole response follows the protocol (`protocol.is_well_formed`).
        metric: "em", "f1" or "substring".
        format_weight: w in [0, 1]; 0 ignores the format.

    Returns:
        The reward, in [0, 1].

    Raises:
        ValueError: unknown metric, format_weight outside [0, 1], or bad golden_answers.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown reward metric {metric!r}; choose one of {sorted(METRICS)}")
    if not 0.0 <= format_weight <= 1.0:
        raise ValueError(f"format_weight is {format_weight}; choose a value in [0, 1]")
    score = float(METRICS[metric](answer, golden_answers))
    return float(max(score, format_weight) if well_formed else max(score - format_weight, 0.0))
