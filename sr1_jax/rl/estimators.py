"""The table of advantage estimators: what `algorithm` may be, and what each needs.

An estimator is a function of a batch and what its tokens earn:

    (rewards_BT, values_BT, batch, config) -> (advantages_BT, returns_BT)

    rewards_BT      rewards of segments on their last tokens, less the weighted KL to the reference
                    where it is part of the reward; 0 on tokens that do not train
    values_BT       of the critic before each token; 0 without one
    batch           of `batch.make_batch`: which tokens train, and who shares a group
    config          settings of the learner
    advantages_BT   float32, 0 on tokens that do not train
    returns_BT      what the critic is to predict; zeros without one

It is traced, over the whole batch. A new one is a function in a file of its own and a line in
`ESTIMATORS`; settings, checks and the learner read all they have to know from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from sr1_jax.rl.advantages import (
    gae,
    group_centred,
    group_relative,
    leave_one_out,
    nothing_to_compare,
    reinforce_pp,
    whiten,
)
from sr1_jax.rl.batch import Batch, trajectory_scores

Estimate = Callable[
    [jax.Array, jax.Array, Batch, ml_collections.ConfigDict], tuple[jax.Array, jax.Array]
]


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A way to estimate advantages.

    Attributes:
        estimate: see the module.
        meaning: a few words for the list of settings.
        needs_critic: whether it learns a value model.
        compares_samples: whether its baseline is made of the samples of a question, of which it
            then needs more than one.
        per_trajectory: whether all tokens of a trajectory have one advantage.
    """

    estimate: Estimate
    meaning: str
    needs_critic: bool = False
    compares_samples: bool = False
    per_trajectory: bool = False


def _ppo(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
    """Generalised advantages, whitened where the settings say so."""
    advantages_BT, returns_BT = gae(
        rewards_BT, values_BT, batch.trains_BT, gamma=config.gamma, lam=config.lam
    )
    if config.whiten:
        # Where no reward differs, all that is left is the rounding of the KL penalty.
        advantages_BT = whiten(advantages_BT, batch.trains_BT, eps=1e-8)
    return advantages_BT, returns_BT


def _reinforce(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
    """Each trajectory's own score: GRPO with groups of one (arXiv 2503.09516)."""
    scores_B = trajectory_scores(rewards_BT, batch)
    return scores_B[:, None] * batch.trains_BT, jnp.zeros_like(values_BT)


def _reinforce_pp(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
    advantages_BT = reinforce_pp(rewards_BT, batch.trains_BT, gamma=config.gamma)
    return advantages_BT, jnp.zeros_like(values_BT)


def _of_groups(function: Callable) -> Estimate:
    """The estimator of a function of scores and groups such as `group_centred`."""

    def estimate(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
        # A trajectory that is left out has no part in the baseline of the others.
        advantages_B = function(
            trajectory_scores(rewards_BT, batch),
            batch.group_B,
            valid_B=batch.trains_BT.any(axis=1),
        )
        return advantages_B[:, None] * batch.trains_BT, jnp.zeros_like(values_BT)

    return estimate


def _grpo(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
    advantages_BT, returns_BT = _of_groups(group_relative)(rewards_BT, values_BT, batch, config)
    if config.kl_in == "reward":
        # Where no reward differs, the KL alone would be standardised: noise at full strength.
        flat_B = nothing_to_compare(
            batch.reward_B, batch.group_B, valid_B=batch.trains_BT.any(axis=1)
        )
        advantages_BT = jnp.where(flat_B[:, None], 0.0, advantages_BT)
    return advantages_BT, returns_BT


_COMPARING = dict(compares_samples=True, per_trajectory=True)

ESTIMATORS: dict[str, Estimator] = {
    "ppo": Estimator(_ppo, "critic, GAE", needs_critic=True),
    "grpo": Estimator(_grpo, "reward standardised over a question's samples", **_COMPARING),
    "dr_grpo": Estimator(
        _of_groups(group_centred), "reward less the mean of a question's samples", **_COMPARING
    ),
    "rloo": Estimator(
        _of_groups(leave_one_out), "reward less the mean of the other samples", **_COMPARING
    ),
    "reinforce": Estimator(
        _reinforce, "reward as it is, as GRPO with groups of one", per_trajectory=True
    ),
    "reinforce_pp": Estimator(_reinforce_pp, "reward to go, standardised over the batch"),
}
