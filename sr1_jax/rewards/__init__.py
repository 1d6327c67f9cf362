"""Rewards: how well an answer matches the golden answers, and what else an episode earns."""

from sr1_jax.rewards.format import outcome_reward
from sr1_jax.rewards.judge import Judge
from sr1_jax.rewards.matching import (
    METRICS,
    exact_match,
    f1_score,
    normalize_answer,
    substring_match,
)
from sr1_jax.rewards.reward import Reward
from sr1_jax.rewards.terms import TERMS

__all__ = [
    "METRICS",
    "TERMS",
    "Judge",
    "Reward",
    "exact_match",
    "f1_score",
    "normalize_answer",
    "outcome_reward",
    "substring_match",
]
