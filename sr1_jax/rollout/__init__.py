"""Rollouts: batched multi-turn episodes against a retriever."""

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.rollout.engine import Engine
from sr1_jax.rollout.settings import check_config, default_config
from sr1_jax.rollout.split_engine import SplitEngine

__all__ = ["Engine", "SplitEngine", "Trajectory", "check_config", "default_config"]
