"""What the updates of a step need to know of its batch: advantages, returns, old log-probs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from sr1_jax.rl.batch import Batch
from sr1_jax.rl.estimators import ESTIMATORS
from sr1_jax.rl.losses import importance_weights, kl_estimate
from sr1_jax.rl.masked import masked_mean
from sr1_jax.sharding import named


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
    """A batch with everything the updates of a model need; all [B, T]."""

    ids_BT: jax.Array
    trains_BT: jax.Array
    old_logp_BT: jax.Array
    ref_logp_BT: jax.Array
    old_values_BT: jax.Array
    advantages_BT: jax.Array
    returns_BT: jax.Array


class Given(NamedTuple):
    """What the updates of a step are given.

    Attributes:
        policy: the batch of the policy's loss; what passes the model is what trains in it.
        counted_BT: nonzero on the tokens that its loss is a mean over.
        critic: the batch of the critic's loss.
    """

    policy: Prepared
    counted_BT: jax.Array
    critic: Prepared


def prepare(
    batch: Batch, scores: Scores, kl_coefficient: jax.Array, *, config: ml_collections.ConfigDict
) -> tuple[Prepared, dict[str, jax.Array]]:
    """Advantages and returns of a whole batch, by the chosen estimator, and metrics.

    Args:
        batch: of `make_batch`.
        scores: of the batch.
        kl_coefficient: float32 scalar.
        config: of the learner.

    Returns:
        What the updates need, and float32 scalars to log.
    """
    trains_BT, values_BT = batch.trains_BT, scores.values_BT
    from_trainer = config.old_logp == "trainer"
    old_logp_BT = scores.logp_BT if from_trainer else batch.logp_BT
    kl_BT = jnp.zeros_like(trains_BT)
    policy_BT = trains_BT if config.mask_advantages else batch.sampled_BT
    if config.kl_in != "none":
        kl_BT = kl_estimate(old_logp_BT, scores.ref_logp_BT, config.kl_kind, mask_BT=policy_BT)
    rewards_BT = batch.rewards_BT
    if config.kl_in == "reward":
        rewards_BT = rewards_BT - kl_coefficient * kl_BT
    estimator = ESTIMATORS[config.algorithm]
    advantages_BT, returns_BT = estimator.estimate(rewards_BT, values_BT, batch, config)
    metrics = {"kl": masked_mean(kl_BT, policy_BT), "trained_tokens": policy_BT.sum()}
    if estimator.needs_critic:
        metrics |= _critic_metrics(values_BT, returns_BT, trains_BT)
    if from_trainer:
        # The losses never see the stored ones then; the gap is between these two.
        gap_BT = jnp.abs(scores.logp_BT - batch.logp_BT)
        metrics["rollout_gap"] = masked_mean(gap_BT, batch.sampled_BT)
    if config.importance_cap is not None:
        weights_BT, more = importance_weights(
            scores.logp_BT, batch.logp_BT, batch.sampled_BT, cap=config.importance_cap
        )
        # The surrogate is linear in both, and the weights are not negative.
        advantages_BT *= weights_BT
        metrics |= more
    prepared = Prepared(
        ids_BT=batch.ids_BT,
        trains_BT=trains_BT,
        old_logp_BT=old_logp_BT,
        ref_logp_BT=scores.ref_logp_BT,
        old_values_BT=values_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
    return prepared, metrics


def step_shapes(trajectories: int, length: int, mesh: Mesh) -> tuple[Batch, Scores, Prepared]:
    """A batch on its way through a step, as shapes with shardings.

    Args:
        trajectories: B.
        length: T.
        mesh: the device mesh.
    """

    def shapes(kind, **dtypes):
        return kind(
            **{
                name: jax.ShapeDtypeStruct(
                    (trajectories, length) if name.endswith("_BT") else (trajectories,),
                    dtypes.get(name, jnp.float32),
                    sharding=named(mesh, "batch"),
                )
                for name in kind._fields
            }
        )

    return (
        shapes(Batch, ids_BT=jnp.int32, group_B=jnp.int32),
        shapes(Scores),
        shapes(Prepared, ids_BT=jnp.int32),
    )


def _critic_metrics(values_BT, returns_BT, trains_BT) -> dict[str, jax.Array]:
    def variance(x_BT):
        return masked_mean(jnp.square(x_BT - masked_mean(x_BT, trains_BT)), trains_BT)

    explained = 1 - variance(returns_BT - values_BT) / jnp.maximum(variance(returns_BT), 1e-8)
    return {
        "critic/explained_variance": explained,
        "critic/value_mean": masked_mean(values_BT, trains_BT),
    }


def kept_trajectories(
    trains_BT: jax.Array, advantages_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`trains_BT` of the trajectories that have an advantage, 0 in the others; bool [B], which."""
    kept_B = jnp.any((trains_BT != 0) & (advantages_BT != 0), axis=1)
    return trains_BT * kept_B[:, None], kept_B
