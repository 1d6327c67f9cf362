"""The learner: jitted, sharded updates of policy and critic from batches of trajectories.

Formulas live in `advantages`, `losses`, `aggregation` and `token_logp`; this file and `prepare`
string them together:

    score        old, reference and critic passes over each micro-batch
    prepare      advantages and returns of the whole batch, by learner.algorithm
    accumulate   gradients of the clipped losses, summed over the micro-batches of a mini-batch
                 with the weights of learner.loss_aggregation
    apply        the sum, clipped, by optax

Array alignment: everything at index t belongs to token t. The critic's value at t is that of the
state before token t, so the model's output is shifted by one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import Program, is_abstract, placed
from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.models.lora import merge_adapters, without_adapters
from sr1_jax.models.segments import Segments
from sr1_jax.rl.aggregation import Totals, count_totals, token_weights, weighted_sum
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.cuts import cut, kinds_of_micro_batches
from sr1_jax.rl.kl_control import adaptive_kl_coefficient
from sr1_jax.rl.losses import displacement_penalty, kl_estimate, policy_loss, value_loss
from sr1_jax.rl.masked import masked_mean
from sr1_jax.rl.micro_batches import MicroBatch, padding_share
from sr1_jax.rl.prepare import Prepared, Scores, prepare
from sr1_jax.rl.settings import check_config, needs_critic
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.rl.update import (
    ModelState,
    Update,
    frozen_copy,
    make_optimizer,
    on_chip,
    place_model,
    put_rows,
    take_rows,
)
from sr1_jax.sharding import compute_on, named, place, tree_shardings


class LearnerState(NamedTuple):
    """All that training changes; a step returns a new one.

    Attributes:
        policy: of the policy.
        critic: of the value model; None without one.
        kl_coefficient: float32 scalar; moves where learner.kl_target is set.
    """

    policy: ModelState
    critic: ModelState | None
    kl_coefficient: jax.Array


class Learner:
    """PPO, or an algorithm without a critic, on a mesh.

    Of a model with adapters those alone are trained, beside the critic's head. The base is shared
    with the model given; without its adapters it is the reference.

    Args:
        policy: the policy; its parameters are copied, and copied again as the frozen reference.
            One of shapes (`nnx.eval_shape`) makes a learner of shapes: it cannot step, but it
            lists the programs of one that can.
        critic: the value model, for PPO.
        config: see `settings.default_config`.
        mesh: of `sharding.make_mesh`.
        trajectories: B, trajectories a step.
        temperature: of sampling.

    Raises:
        ValueError: settings or sizes that cannot work.
    """

    def __init__(
        self,
        policy: Decoder,
        critic: ValueModel | None,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        *,
        trajectories: int,
        temperature: float = 1.0,
    ):
        check_config(config, trajectories)
        if (critic is not None) != needs_critic(config):
            raise ValueError(
                f"learner.algorithm={config.algorithm!r}: ppo needs a critic, all others have none."
            )
        batch_devices = mesh.shape["data"] * mesh.shape["fsdp"]
        if config.micro_batch % batch_devices:
            raise ValueError(
                f"learner.micro_batch={config.micro_batch} does not divide over the "
                f"{batch_devices} devices of mesh axes data and fsdp."
            )
        self._config = config
        self._mesh = mesh
        self._trajectories = trajectories
        self._temperature = temperature
        self._lora = policy.config.lora
        self._policy_graph, policy_params, frozen = nnx.split(policy, policy.trainable, ...)
        abstract = is_abstract(nnx.state(policy))
        move = placed if abstract else jax.device_put
        self._policy_frozen = move(frozen, tree_shardings(frozen, mesh))
        offload_optimizer = "optimizer" in config.offload
        self._policy_optimizer = make_optimizer(config.learning_rate, config.warmup_steps, config)
        self._critic_graph = self._critic_frozen = critic_state = None
        if critic is not None:
            self._critic_graph, critic_params, frozen = nnx.split(critic, critic.trainable, ...)
            self._critic_frozen = move(frozen, tree_shardings(frozen, mesh))
            self._critic_optimizer = make_optimizer(
                config.critic_learning_rate, config.critic_warmup_steps, config
            )
            critic_state = place_model(
                critic_params, self._critic_optimizer, mesh, offload_optimizer=offload_optimizer
            )
        kl_coefficient = np.float32(0 if config.kl_in == "none" else config.kl_coefficient)
        self.initial_state = LearnerState(
            policy=place_model(
                policy_params, self._policy_optimizer, mesh, offload_optimizer=offload_optimizer
            ),
            critic=critic_state,
            kl_coefficient=(placed if abstract else place)(kl_coefficient, named(mesh)),
        )
        self._reference_graph = self._policy_graph
        if self._lora is None:
            self.reference = None  # nothing asks it without a KL
            if config.kl_in != "none":
                self.reference = frozen_copy(
                    policy_params,
                    mesh,
                    dtype=policy.config.dtype,
                    offload="reference" in config.offload,
                )
        else:
            self._reference_graph = nnx.graphdef(without_adapters(policy))
            self.reference = self._policy_frozen
            self._merge = jax.jit(
                lambda params, frozen: merge_adapters(nnx.merge_state(params, frozen), self._lora),
                out_shardings=tree_shardings(self.reference, mesh),
            )
        rows = named(mesh, "batch")
        self._score = jax.jit(
            self._score_fn,
            donate_argnums=0,
            static_argnames=("length", "most"),
            out_shardings=rows,
        )
        self._prepare = jax.jit(
            functools.partial(prepare, config=config), out_shardings=(rows, None)
        )
        self._totals = jax.jit(_totals_of_rows)
        self._update_policy = Update(
            self._policy_loss, self._policy_optimizer, self.initial_state.policy, mesh
        )
        if critic is not None:
            self._update_critic = Update(
                self._critic_loss, self._critic_optimizer, critic_state, mesh
            )

    def step(
        self, state: LearnerState, batch: Batch, *, seed: int, step: int
    ) -> tuple[LearnerState, dict[str, float]]:
        """One step over a batch: advantages, then config.epochs passes of updates.

        Args:
            state: donated; use the returned one.
            batch: of `make_batch`, B as given to the constructor; the same in every process.
            seed, step: decide the shuffle into mini-batches.

        Returns:
            The new state and metrics averaged over the updates.

        Raises:
            ValueError: a trajectory is longer than the last of learner.length_buckets.
        """
        everything = np.arange(len(batch.reward_B))
        on_mesh = place(batch, named(self._mesh, "batch"))
        scores = self._scores(state, on_mesh, cut(batch.mask_BT, everything, self._config))
        prepared, metrics = self._prepare(on_mesh, scores, state.kl_coefficient)
        rng = np.random.default_rng((seed, step))
        history: list[dict[str, jax.Array]] = []
        plans: list[MicroBatch] = []
        policy, critic = state.policy, state.critic
        for _ in range(self._config.epochs):
            order = rng.permutation(everything)
            for rows in np.split(order, self._config.minibatches):
                totals = self._totals(prepared, rows)
                plan = cut(batch.mask_BT, rows, self._config)
                plans += plan
                minibatch = (prepared, plan, totals)
                policy, logged = self._update_policy(
                    policy, *minibatch, state.kl_coefficient, self._policy_frozen
                )
                logged = {f"policy/{key}": value for key, value in logged.items()}
                if critic is not None:
                    critic, more = self._update_critic(critic, *minibatch, self._critic_frozen)
                    logged |= {f"critic/{key}": value for key, value in more.items()}
                history.append(logged)
        history, metrics, coefficient = jax.device_get((history, metrics, state.kl_coefficient))
        means = {key: float(np.mean([h[key] for h in history])) for key in history[0]}
        # Before the first update the trainer has the sampler's own weights, so what is left of
        # the difference is numerics: the sampler/trainer mismatch.
        means["rollout_gap"] = float(history[0]["policy/old_logp_gap"])
        means |= {key: float(value) for key, value in metrics.items()}
        means["padding_share"] = padding_share(batch.mask_BT, plans)
        means["kl_coefficient"] = float(coefficient)
        return LearnerState(policy, critic, self._next_kl_coefficient(state, means)), means

    def _next_kl_coefficient(self, state: LearnerState, means: dict[str, float]) -> jax.Array:
        """Steered towards learner.kl_target by the KL before the updates, or as it was."""
        config = self._config
        if config.kl_target is None or not np.isfinite(means["kl"]):
            return state.kl_coefficient  # the loop stops at what is not finite
        coefficient = adaptive_kl_coefficient(
            means["kl_coefficient"],
            means["kl"],
            target=config.kl_target,
            horizon=config.kl_horizon,
            batch_size=self._trajectories,
        )
        return place(np.float32(coefficient), named(self._mesh))

    def policy_params(self, state: LearnerState) -> nnx.State:
        """All parameters of the policy as a plain decoder has them: what rollouts run with.

        With adapters they are merged into a copy of the base, in its dtype.
        """
        if self._lora is None:
            return state.policy.params
        return self._merge(state.policy.params, self._policy_frozen)

    def programs(self) -> list[Program]:
        """Every program that a step may call, with shapes for arguments; computes nothing.

        Of micro-batches there is one for each of learner.length_buckets, or, with packing, of
        learner.row_lengths, and each bound on the trained tokens of a row.
        """
        config, mesh, state = self._config, self._mesh, self.initial_state
        shape_BT = (self._trajectories, config.length_buckets[-1])
        reals_BT, ids_BT = (jax.ShapeDtypeStruct(shape_BT, x) for x in (jnp.float32, jnp.int32))
        of_rows = (jax.ShapeDtypeStruct(shape_BT[:1], x) for x in (jnp.float32, jnp.int32))
        by_row = named(mesh, "batch")
        batch = placed(Batch(ids_BT, reals_BT, reals_BT, *of_rows), by_row)
        scores = placed(Scores(*[reals_BT] * len(Scores._fields)), by_row)
        prepared = placed(Prepared(ids_BT, *[reals_BT] * (len(Prepared._fields) - 1)), by_row)
        kinds = kinds_of_micro_batches(config)
        critic = None if state.critic is None else (state.critic.params, self._critic_frozen)
        reference = on_chip(self.reference) if config.kl_in != "none" else None
        models = ((state.policy.params, self._policy_frozen), critic, reference)
        found = [
            Program(
                f"score {length}/{most}",
                self._score,
                (scores, batch, *models, rows),
                {"length": length, "most": most},
                config.micro_batch * length,
            )
            for rows, length, most in kinds
        ]
        found.append(Program("prepare", self._prepare, (batch, scores, state.kl_coefficient)))
        minibatch_R = (self._trajectories // config.minibatches,)
        found.append(
            Program(
                "totals", self._totals, (prepared, jax.ShapeDtypeStruct(minibatch_R, jnp.int32))
            )
        )
        found += self._update_policy.programs(
            "policy",
            state.policy,
            prepared,
            kinds,
            state.kl_coefficient,
            self._policy_frozen,
        )
        if state.critic is not None:
            found += self._update_critic.programs(
                "critic", state.critic, prepared, kinds, self._critic_frozen
            )
        if self._lora is not None:
            adapted = (state.policy.params, self._policy_frozen)
            found.append(Program("merge", self._merge, adapted))
        shapes = jax.tree.map(
            lambda x: placed(x, x.sharding) if isinstance(x, jax.Array) else x,
            [program.arguments for program in found],
        )
        return [program._replace(arguments=given) for program, given in zip(found, shapes)]

    def _scores(self, state: LearnerState, batch: Batch, plan: Sequence[MicroBatch]) -> Scores:
        """What policy, reference and critic say of the batch."""
        zeros = [np.zeros(batch.ids_BT.shape, np.float32) for _ in Scores._fields]
        scores = place(Scores(*zeros), named(self._mesh, "batch"))
        critic = None if state.critic is None else (state.critic.params, self._critic_frozen)
        # On the devices for as long as this takes.
        reference = on_chip(self.reference) if self._config.kl_in != "none" else None
        for rows, length, most in plan:
            scores = self._score(
                scores,
                batch,
                (state.policy.params, self._policy_frozen),
                critic,
                reference,
                rows,
                length=length,
                most=most,
            )
        return scores

    # Everything below is traced.

    def _score_fn(
        self, scores: Scores, batch: Batch, policy, critic, reference, rows, *, length, most
    ) -> Scores:
        """`scores` with those of a micro-batch filled in."""
        config = self._config
        taken, segments = take_rows((batch.ids_BT, batch.mask_BT), rows, length, self._mesh)
        found = {}
        if config.old_logp == "trainer":
            model = nnx.merge(self._policy_graph, *policy)
            found["logp_BT"] = self._token_logp(model, *taken, most, segments)[0]
        if config.kl_in != "none":
            model = nnx.merge(self._reference_graph, reference)
            found["ref_logp_BT"] = self._token_logp(model, *taken, most, segments)[0]
        if critic is not None:
            found["values_BT"] = self._values(*critic, taken[0], segments)
        return scores._replace(
            **{name: put_rows(getattr(scores, name), rows, x) for name, x in found.items()}
        )

    def _values(self, params, frozen, ids_BT, segments: Segments | None):
        with compute_on(self._mesh):
            values_BT = nnx.merge(self._critic_graph, params, frozen)(ids_BT, segments)
        before_BT = jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)))
        # Not what the row's last sequence was worth at its end.
        return before_BT if segments is None else before_BT * (segments.position_BT > 0)

    def _token_logp(self, model: Decoder, ids_BT, mask_BT, most: int, segments: Segments | None):
        with compute_on(self._mesh):
            return token_logp(
                model,
                ids_BT,
                mask_BT,
                most=most,
                temperature=self._temperature,
                chunk_tokens=self._config.chunk_tokens,
                segments=segments,
            )

    def _policy_loss(
        self, params, b: Prepared, totals: Totals, most: int, segments, kl_coefficient, frozen
    ):
        config = self._config
        model = nnx.merge(self._policy_graph, params, frozen)
        logp_BT, entropy_BT = self._token_logp(model, b.ids_BT, b.mask_BT, most, segments)
        segment_BT = None if segments is None else segments.id_BT
        weights_BT = token_weights(
            b.mask_BT,
            config.loss_aggregation,
            tokens=totals.tokens,
            sequences=totals.sequences,
            constant=config.loss_constant,
            segment_BT=segment_BT,
        )
        surrogate, means = policy_loss(
            logp_BT,
            b.old_logp_BT,
            b.advantages_BT,
            b.mask_BT,
            clip=(config.clip, config.clip if config.clip_high is None else config.clip_high),
            ratio=config.ratio,
            dual_clip=config.dual_clip,
            weights_BT=weights_BT,
            segment_BT=segment_BT,
        )
        means |= {
            "entropy": masked_mean(entropy_BT, b.mask_BT),
            "old_logp_gap": masked_mean(jnp.abs(logp_BT - b.old_logp_BT), b.mask_BT),
        }
        terms = {"surrogate": surrogate}
        if config.entropy_coefficient:
            bonus = weighted_sum(entropy_BT, weights_BT)
            terms["entropy_loss"] = -config.entropy_coefficient * bonus
        if config.kl_in == "loss":
            kl_BT = kl_estimate(logp_BT, b.ref_logp_BT, config.kl_kind, mask_BT=b.mask_BT)
            terms["kl_loss"] = kl_coefficient * weighted_sum(kl_BT, weights_BT)
        if config.displacement_coefficient:
            lost = displacement_penalty(
                logp_BT, b.old_logp_BT, b.advantages_BT, b.mask_BT, count=totals.favoured
            )
            terms["displacement_loss"] = config.displacement_coefficient * lost
        return terms, means

    def _critic_loss(self, params, b: Prepared, totals: Totals, most: int, segments, frozen):
        del most  # every token passes the value head
        loss, means = value_loss(
            self._values(params, frozen, b.ids_BT, segments),
            b.old_values_BT,
            b.returns_BT,
            b.mask_BT,
            clip=self._config.value_clip,
        )
        return {"loss": loss * b.mask_BT.sum() / jnp.maximum(totals.tokens, 1)}, means


def _totals_of_rows(prepared: Prepared, rows_R) -> Totals:
    return count_totals(prepared.mask_BT[rows_R], prepared.advantages_BT[rows_R])
