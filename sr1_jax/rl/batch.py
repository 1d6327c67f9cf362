"""Trajectories as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sr1_jax.environment.trajectory import Trajectory


class Batch(NamedTuple):
    """Right-padded trajectories.

    A token was *sampled* if the policy wrote it, and it *trains* if the losses see it. In a
    trajectory that trains, every sampled token does; in one ablation observations train as well.

    Attributes:
        ids_BT: int32 tokens.
        trains_BT: float32, 1 on tokens that train. In one ablation they are what advantages and the
            critic see, and the policy's loss sees `sampled_BT`.
        sampled_BT: float32, 1 on tokens that were sampled and train.
        logp_BT: float32 behaviour log-probabilities, 0 where nothing was sampled.
        rewards_BT: float32, the reward of each segment the policy wrote, on its last token; 0
            elsewhere, and in trajectories that do not train.
        reward_B: float32 reward of each trajectory, the sum of those of its segments.
        group_B: int32; trajectories of one question share a number.
    """

    ids_BT: np.ndarray
    trains_BT: np.ndarray
    sampled_BT: np.ndarray
    logp_BT: np.ndarray
    rewards_BT: np.ndarray
    reward_B: np.ndarray
    group_B: np.ndarray


def make_batch(
    trajectories: Sequence[Trajectory],
    *,
    length: int,
    pad_id: int,
    mask_observations: bool = True,
) -> Batch:
    """Stacks trajectories.

    Args:
        trajectories: any, of at most `length` tokens.
        length: T.
        pad_id: fills `ids_BT`; never read, masks say what counts.
        mask_observations: False has everything after the prompt train (ablations).

    Returns:
        The batch; rows are in the order of the trajectories.

    Raises:
        ValueError: a trajectory is longer than `length`, or it has not one reward for each of its
            segments.
    """
    shape = (len(trajectories), length)
    ids_BT = np.full(shape, pad_id, np.int32)
    trains_BT, sampled_BT, logp_BT, rewards_BT = np.zeros((4, *shape), np.float32)
    group_of: dict[str, int] = {}
    for row, trajectory in enumerate(trajectories):
        size = len(trajectory.ids)
        if size > length:
            raise ValueError(
                f"Trajectory {trajectory.question_id} has {size} tokens, the batch holds {length}."
            )
        ids_BT[row, :size] = trajectory.ids
        logp_BT[row, :size] = trajectory.logp
        group_of.setdefault(trajectory.question_id, len(group_of))
        if not trajectory.trains:
            continue
        sampled_BT[row, :size] = trajectory.mask
        trains_BT[row, :size] = trajectory.mask
        if not mask_observations:
            trains_BT[row, trajectory.prompt_length : size] = 1
        rewards_BT[row, _segment_ends(trajectory)] = trajectory.segment_rewards
    return Batch(
        ids_BT,
        trains_BT,
        sampled_BT,
        logp_BT,
        rewards_BT,
        np.array([trajectory.reward for trajectory in trajectories], np.float32),
        np.array([group_of[trajectory.question_id] for trajectory in trajectories], np.int32),
    )


def trajectory_scores(rewards_BT: jax.Array, batch: Batch) -> jax.Array:
    """What each trajectory earns in all: its reward, less the KL that is part of `rewards_BT`.

    The sum of a row of `rewards_BT` would not do: two trajectories with equal rewards can have sums
    that differ by rounding, and a group of equal rewards has to have equal scores.

    Args:
        rewards_BT: those of the batch, changed or not.
        batch: of `make_batch`.

    Returns:
        scores_B, float32.
    """
    return batch.reward_B + (rewards_BT - batch.rewards_BT).sum(axis=1)


def _segment_ends(trajectory: Trajectory) -> np.ndarray:
    """Index of the last token of each segment, a contiguous run of sampled tokens."""
    ends = np.flatnonzero(np.diff(trajectory.mask, append=0) < 0)
    if len(ends) != len(trajectory.segment_rewards):
        raise ValueError(
            f"Trajectory {trajectory.question_id} has {len(ends)} segments, but "
            f"{len(trajectory.segment_rewards)} segment rewards."
        )
    return ends
