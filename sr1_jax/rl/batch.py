"""Trajectories as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sr1_jax.environment.trajectory import Trajectory


class Batch(NamedTuple):
    """Right-padded trajectories.

    Attributes:
        ids_BT: int32 tokens.
        mask_BT: float32, 1 on tokens that train.
        logp_BT: float32 behaviour log-probs, 0 where nothing was sampled.
        reward_B: float32 outcome rewards.
        group_B: int32; trajectories of one question share a number.
    """

    ids_BT: np.ndarray
    mask_BT: np.ndarray
    logp_BT: np.ndarray
    reward_B: np.ndarray
    group_B: np.ndarray


def outcome(
    trajectory: Trajectory,
    *,
    truncated: str = "mask",
    truncation_penalty: float = 0.0,
    overlong_buffer: int = 0,
    overlong_penalty: float = 1.0,
    budget: int = 0,
) -> tuple[float, bool]:
    """The reward that a trajectory trains on, and whether it trains at all.

    Args:
        trajectory: any.
        truncated: what an episode that ran out of budget counts for: "mask" trains on none of
            its tokens, "penalise" gives it the reward `-truncation_penalty`, or, with an overlong
            buffer, what the whole budget costs if that is more.
        truncation_penalty: see above.
        overlong_buffer: tokens before the budget from which on length costs; 0: it never does.
        overlong_penalty: what a trajectory of the whole budget pays; in the buffer the price grows
            linearly (DAPO, arXiv 2503.14476, equation 13).
        budget: tokens a trajectory may have, prompt included; only for the above.

    Raises:
        ValueError: `truncated` is unknown.
    """
    if truncated not in ("mask", "penalise"):
        raise ValueError(f'learner.truncated must be "mask" or "penalise", not {truncated!r}.')
    if trajectory.status == "truncated":
        if truncated == "mask":
            return trajectory.reward, False
        # Who ends in time never pays more than who does not.
        return -max(truncation_penalty, overlong_penalty if overlong_buffer else 0.0), True
    if not overlong_buffer:
        return trajectory.reward, True
    over = len(trajectory.ids) - (budget - overlong_buffer)
    share = min(max(over / overlong_buffer, 0.0), 1.0)
    return trajectory.reward - overlong_penalty * share, True


def make_batch(
    trajectories: Sequence[Trajectory],
    *,
    length: int,
    pad_id: int,
    mask_observations: bool = True,
    **judged: Any,
) -> Batch:
    """Stacks trajectories.

    Args:
        trajectories: any, of at most `length` tokens.
        length: T.
        pad_id: fills `ids_BT`; never read, masks say what counts.
        mask_observations: False trains on everything after the prompt (an ablation).
        judged: settings of `outcome`: the rewards, and which trajectories train.

    Raises:
        ValueError: a trajectory is longer than `length`, or a setting is unknown.
    """
    shape = (len(trajectories), length)
    ids_BT, mask_BT = np.full(shape, pad_id, np.int32), np.zeros(shape, np.float32)
    logp_BT, reward_B = np.zeros(shape, np.float32), np.zeros(len(trajectories), np.float32)
    group_of: dict[str, int] = {}
    group_B = np.zeros(len(trajectories), np.int32)
    for row, trajectory in enumerate(trajectories):
        size = len(trajectory.ids)
        if size > length:
            raise ValueError(
                f"Trajectory {trajectory.question_id} has {size} tokens, the batch holds {length}."
            )
        ids_BT[row, :size] = trajectory.ids
        logp_BT[row, :size] = trajectory.logp
        reward_B[row], trains = outcome(trajectory, **judged)
        group_B[row] = group_of.setdefault(trajectory.question_id, len(group_of))
        mask_BT[row, :size] = trajectory.mask
        if not mask_observations:
            mask_BT[row, trajectory.prompt_length : size] = 1
        if not trains:
            mask_BT[row] = 0
    return Batch(ids_BT, mask_BT, logp_BT, reward_B, group_B)
