"""The published reward for an answer, its format and what was retrieved (arXiv 2505.15117)."""

from __future__ import annotations

from collections.abc import Iterable

from sr1_jax.rewards.matching import METRICS


def outcome_reward(
    answer: str | None,
    golden_answers: str | Iterable[str],
    well_formed: bool,
    *,
    retrieved: bool = False,
    metric: str = "em",
    format_weight: float = 0.0,
    final_format_weight: float = 0.0,
    retrieval_weight: float = 0.0,
) -> float:
    """Score of an answer, with shares for the format and for what was retrieved.

    Source: arXiv 2505.15117, which publishes format_weight w = 0.2, final_format_weight f = 0.1
    and retrieval_weight r = 0.1. With score 1 for correct and 0 for wrong:

                                      well formed          ill-formed
        correct                            1                 1 - w
        wrong, gold was retrieved        w + r                 f
        wrong, it was not                  w                   f
        no answer                      as if wrong             0

    For a graded metric (F1) the same table reads max(score, w + r or w) and max(score - w, f or 0):
    a partly right answer never earns less than a wrong one of the same format, and nothing is
    negative. Deviation: a blank answer is none; the published code gives it f.

    Args:
        answer: the extracted answer, or None if the response holds none (score 0).
        golden_answers: one string or a non-empty list of strings.
        well_formed: whether the whole response follows the protocol (`protocol.is_well_formed`).
        retrieved: whether gold was among what came back (`retrieval.gold_segment`).
        metric: a name of `METRICS`.
        format_weight: w in [0, 1]; 0 ignores the format.
        final_format_weight: f in [0, 1 - w]: for an ill-formed response that ends in an answer.
        retrieval_weight: r in [0, 1 - w].

    Returns:
        The reward, in [0, 1].

    Raises:
        ValueError: unknown metric, a weight out of its range, or bad golden_answers.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown reward metric {metric!r}; choose one of {sorted(METRICS)}")
    check_weights(format_weight, final_format_weight, retrieval_weight)
    score = float(METRICS[metric](answer, golden_answers))
    if well_formed:
        return float(max(score, format_weight + retrieval_weight * retrieved))
    return float(max(score - format_weight, final_format_weight * has_final_format(answer), 0.0))


def has_final_format(answer: str | None) -> bool:
    """Whether an episode ended in an answer that is not blank, whatever came before it."""
    return answer is not None and bool(answer.strip())


def check_weights(
    format_weight: float, final_format_weight: float, retrieval_weight: float, where: str = ""
) -> None:
    """Refuses weights with which a wrong answer would earn more than a right one.

    Args:
        format_weight: see `outcome_reward`.
        final_format_weight: see `outcome_reward`.
        retrieval_weight: see `outcome_reward`.
        where: prefix of the names in messages, such as "reward.".

    Raises:
        ValueError: names the weight, its value and what would do.
    """
    if not 0.0 <= format_weight <= 1.0:
        raise ValueError(f"{where}format_weight is {format_weight}; choose a value in [0, 1]")
    others = {"final_format_weight": final_format_weight, "retrieval_weight": retrieval_weight}
    for name, weight in others.items():
        if not (weight >= 0.0 and format_weight + weight <= 1.0):
            raise ValueError(
                f"{where}{name} is {weight}; choose a value that is not negative and with "
                f"{where}format_weight={format_weight} at most 1, or a wrong answer would earn "
                "more than a right one"
            )
