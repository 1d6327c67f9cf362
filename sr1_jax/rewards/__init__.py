"""Rewards: how well an answer matches the golden answers, and what else an episode earns."""

from sr1_jax.rewards.matching import (
    METRICS,
    exact_match,
    f1_score,
    normalize_answer,
    outcome_reward,
    substring_match,
)

__all__ = [
    "METRICS",
    "exact_match",
    "f1_score",
    "normalize_answer",
    "outcome_reward",
    "substring_match",
]
