"""What a micro-batch is to the models: scores before the updates, and the losses in them.

Formulas live in `losses`, `aggregation` and `token_logp`; this is where models and settings meet
them. Everything here is traced.

Array alignment: everything at index t belongs to token t. The critic's value at t is that of the
state before token t, so the model's output is shifted by one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.packed import PackedSequences
from sr1_jax.rl.aggregation import Totals, token_weights, weighted_sum
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.losses import (
    displacement_penalty,
    kl_estimate,
    policy_loss,
    ratio_extremes,
    value_loss,
)
from sr1_jax.rl.masked import masked_mean
from sr1_jax.rl.prepare import Prepared, Scores
from sr1_jax.rl.shared_prefixes import (
    SharedPrefixes,
    tokens_of_trajectories,
    tokens_of_trees,
)
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.rl.update import put_rows, take_rows
from sr1_jax.sharding import compute_on


@dataclasses.dataclass(frozen=True)
class Passes:
    """The forward passes of a learner's models.

    Attributes:
        config: of the learner.
        mesh: the device mesh.
        temperature: of sampling.
        policy, reference, critic: graphs of the models; no critic without one.
    """

    config: ml_collections.ConfigDict
    mesh: Mesh
    temperature: float
    policy: nnx.GraphDef
    reference: nnx.GraphDef
    critic: nnx.GraphDef | None

    def score(
        self, scores: Scores, batch: Batch, policy, critic, reference, rows, *, length, trained
    ) -> Scores:
        """`scores` with those of a micro-batch filled in.

        Args:
            scores: of the whole batch.
            batch: the whole batch.
            policy, critic: trained and frozen parameters of each; no critic without one.
            reference: parameters; None without a KL term.
            rows, length, trained: of a `MicroBatch`.
        """
        config = self.config
        taken, packed = take_rows((batch.ids_BT, batch.trains_BT), rows, length, self.mesh)
        found = {}
        if config.old_logp == "trainer":
            model = nnx.merge(self.policy, *policy)
            found["logp_BT"] = self._token_logp(model, *taken, trained, packed)[0]
        if config.kl_in != "none":
            model = nnx.merge(self.reference, reference)
            found["ref_logp_BT"] = self._token_logp(model, *taken, trained, packed)[0]
        if critic is not None:
            found["values_BT"] = self._values(*critic, taken[0], packed)
        return scores._replace(
            **{name: put_rows(getattr(scores, name), rows, x) for name, x in found.items()}
        )

    def policy_loss(
        self,
        params: Any,
        micro_batch: Prepared,
        totals: Totals,
        trained: int,
        packed: PackedSequences | SharedPrefixes | None,
        kl_coefficient: jax.Array,
        frozen: Any,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Terms of the policy's loss and means over tokens; see `update.add_gradients`."""
        config, b = self.config, micro_batch
        model = nnx.merge(self.policy, params, frozen)
        logp_BT, entropy_BT = self._token_logp(model, b.ids_BT, b.trains_BT, trained, packed)
        # With shared prefixes the losses have a trajectory a row.
        sequence_BT = packed.id_BT if isinstance(packed, PackedSequences) else None
        weights_BT = token_weights(
            b.trains_BT,
            config.loss_aggregation,
            tokens=totals.tokens,
            sequences=totals.sequences,
            constant=config.loss_constant,
            sequence_BT=sequence_BT,
        )
        surrogate, means = policy_loss(
            logp_BT,
            b.old_logp_BT,
            b.advantages_BT,
            b.trains_BT,
            clip=(config.clip, config.clip if config.clip_high is None else config.clip_high),
            ratio=config.ratio,
            dual_clip=config.dual_clip,
            weights_BT=weights_BT,
            sequence_BT=sequence_BT,
        )
        means |= {
            "entropy": masked_mean(entropy_BT, b.trains_BT),
            "old_logp_gap": masked_mean(jnp.abs(logp_BT - b.old_logp_BT), b.trains_BT),
        } | ratio_extremes(logp_BT, b.old_logp_BT, b.trains_BT)
        terms = {"surrogate": surrogate}
        if config.entropy_coefficient:
            bonus = weighted_sum(entropy_BT, weights_BT)
            terms["entropy_loss"] = -config.entropy_coefficient * bonus
        if config.kl_in == "loss":
            kl_BT = kl_estimate(logp_BT, b.ref_logp_BT, config.kl_kind, mask_BT=b.trains_BT)
            terms["kl_loss"] = kl_coefficient * weighted_sum(kl_BT, weights_BT)
        if config.displacement_coefficient:
            lost = displacement_penalty(
                logp_BT, b.old_logp_BT, b.advantages_BT, b.trains_BT, count=totals.favoured
            )
            terms["displacement_loss"] = config.displacement_coefficient * lost
        return terms, means

    def critic_loss(
        self,
        params: Any,
        micro_batch: Prepared,
        totals: Totals,
        trained: int,
        packed: PackedSequences | SharedPrefixes | None,
        frozen: Any,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The critic's loss and means over tokens; see `update.add_gradients`."""
        del trained  # every token passes the value head
        b = micro_batch
        loss, means = value_loss(
            self._values(params, frozen, b.ids_BT, packed),
            b.old_values_BT,
            b.returns_BT,
            b.trains_BT,
            clip=self.config.value_clip,
        )
        return {"loss": loss * b.trains_BT.sum() / jnp.maximum(totals.tokens, 1)}, means

    def _values(self, params, frozen, ids_BT, packed: PackedSequences | SharedPrefixes | None):
        model = nnx.merge(self.critic, params, frozen)
        if isinstance(packed, SharedPrefixes):
            trees = packed.trees
            with compute_on(self.mesh):
                values_RL = model(tokens_of_trees(ids_BT, packed), trees)
            before_RL = jnp.take_along_axis(values_RL, trees.parent_BT, axis=1)
            return tokens_of_trajectories(before_RL * (trees.position_BT > 0), packed)
        with compute_on(self.mesh):
            values_BT = model(ids_BT, packed)
        before_BT = jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)))
        # Not what the row's last sequence was worth at its end.
        return before_BT if packed is None else before_BT * (packed.position_BT > 0)

    def _token_logp(
        self,
        model,
        ids_BT,
        trains_BT,
        trained: int,
        packed: PackedSequences | SharedPrefixes | None,
    ):
        if isinstance(packed, SharedPrefixes):
            ids_RL = tokens_of_trees(ids_BT, packed)
            found = self._token_logp_of_rows(model, ids_RL, packed.wanted_RL, trained, packed.trees)
            trains_BT = trains_BT != 0
            return tuple(jnp.where(trains_BT, tokens_of_trajectories(x, packed), 0) for x in found)
        return self._token_logp_of_rows(model, ids_BT, trains_BT, trained, packed)

    def _token_logp_of_rows(self, model, ids_BT, trains_BT, trained, packed):
        with compute_on(self.mesh):
            return token_logp(
                model,
                ids_BT,
                trains_BT,
                max_wanted=trained,
                temperature=self.temperature,
                chunk_tokens=self.config.chunk_tokens,
                packed=packed,
            )
