"""What the updates of a step need to know of its batch: advantages, returns, old log-probs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from sr1_jax.rl.advantages import (
    all_equal,
    gae,
    group_centred,
    group_relative,
    leave_one_out,
    reinforce_pp,
    whiten,
)
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.losses import importance_weights, kl_estimate
from sr1_jax.rl.masked import masked_mean
from sr1_jax.rl.settings import needs_critic

_GROUP_ADVANTAGES = {
    "grpo": group_relative,
    "dr_grpo": group_centred,
    "rloo": leave_one_out,
}


class Scores(NamedTuple):
    """What the models say of a batch before it changes them; all [B, T], 0 where not asked for.

    Attributes:
        logp_BT: of the policy, under `old_logp="trainer"`.
        ref_logp_BT: of the reference, with a KL term.
        values_BT: of the critic, with one.
    """

    logp_BT: jax.Array
    ref_logp_BT: jax.Array
    values_BT: jax.Array


class Prepared(NamedTuple):
    """A batch with everything the updates need; all [B, T]."""

    ids_BT: jax.Array
    mask_BT: jax.Array
    old_logp_BT: jax.Array
    ref_logp_BT: jax.Array
    old_values_BT: jax.Array
    advantages_BT: jax.Array
    returns_BT: jax.Array


def prepare(
    batch: Batch, scores: Scores, kl_coefficient: jax.Array, *, config: ml_collections.ConfigDict
) -> tuple[Prepared, dict[str, jax.Array]]:
    """Advantages and returns of a whole batch, by learner.algorithm, and metrics."""
    mask_BT, values_BT = batch.mask_BT, scores.values_BT
    old_logp_BT = scores.logp_BT if config.old_logp == "trainer" else batch.logp_BT
    kl_BT = jnp.zeros_like(mask_BT)
    if config.kl_in != "none":
        kl_BT = kl_estimate(old_logp_BT, scores.ref_logp_BT, config.kl_kind, mask_BT=mask_BT)
    rewards_BT = _reward_on_last_token(batch.reward_B, mask_BT)
    if config.kl_in == "reward":
        rewards_BT -= kl_coefficient * kl_BT * mask_BT
    metrics = {"kl": masked_mean(kl_BT, mask_BT), "trained_tokens": mask_BT.sum()}
    advantages_BT, returns_BT = _advantages(rewards_BT, values_BT, batch, config)
    if needs_critic(config):
        residual = _masked_variance(returns_BT - values_BT, mask_BT)
        metrics["critic/explained_variance"] = 1 - residual / jnp.maximum(
            _masked_variance(returns_BT, mask_BT), 1e-8
        )
        metrics["critic/value_mean"] = masked_mean(values_BT, mask_BT)
    if config.old_logp == "trainer":
        # The losses never see the stored ones then; the gap is between these two.
        sampled_BT = mask_BT * (batch.logp_BT != 0)
        metrics["rollout_gap"] = masked_mean(jnp.abs(scores.logp_BT - batch.logp_BT), sampled_BT)
    if config.importance_cap is not None:
        weights_BT, more = importance_weights(
            scores.logp_BT, batch.logp_BT, mask_BT, cap=config.importance_cap
        )
        # The surrogate is linear in both, and the weights are not negative.
        advantages_BT *= weights_BT
        metrics |= more
    prepared = Prepared(
        batch.ids_BT,
        mask_BT,
        old_logp_BT,
        scores.ref_logp_BT,
        values_BT,
        advantages_BT,
        returns_BT,
    )
    return prepared, metrics


def _advantages(rewards_BT, values_BT, batch: Batch, config: ml_collections.ConfigDict):
    """Advantages by algorithm, and returns, which are 0 without a critic."""
    mask_BT = batch.mask_BT
    if config.algorithm in _GROUP_ADVANTAGES:
        # A masked trajectory has no part in the baseline of the others.
        valid_B = mask_BT.any(axis=1)
        advantages_B = _GROUP_ADVANTAGES[config.algorithm](
            rewards_BT.sum(axis=1), batch.group_B, valid_B=valid_B
        )
        if config.algorithm == "grpo" and config.kl_in == "reward":
            # Where no reward differs, the KL alone would be standardised: noise at full strength.
            flat_B = all_equal(batch.reward_B, batch.group_B, valid_B=valid_B)
            advantages_B = jnp.where(flat_B, 0.0, advantages_B)
        return advantages_B[:, None] * mask_BT, jnp.zeros_like(mask_BT)
    if config.algorithm == "reinforce_pp":
        advantages_BT = reinforce_pp(rewards_BT, mask_BT, gamma=config.gamma)
        return advantages_BT, jnp.zeros_like(mask_BT)
    advantages_BT, returns_BT = gae(
        rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam
    )
    if config.whiten:
        # Where no reward differs, all that is left is the rounding of the KL penalty.
        advantages_BT = whiten(advantages_BT, mask_BT, eps=1e-8)
    return advantages_BT, returns_BT


def _reward_on_last_token(reward_B, mask_BT):
    """Each outcome reward at the last token of mask 1; nowhere if there is none."""
    last_BT = (mask_BT > 0) & (jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] == 1)
    return last_BT * reward_B[:, None]


def _masked_variance(x_BT, mask_BT):
    return masked_mean(jnp.square(x_BT - masked_mean(x_BT, mask_BT)), mask_BT)
