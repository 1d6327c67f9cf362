"""The learner: jitted, sharded updates of policy and critic from batches of trajectories.

It strings together what the other modules compute:

    score        old, reference and critic passes over each micro-batch (`passes`)
    prepare      advantages and returns of the whole batch, by learner.algorithm (`prepare`)
    accumulate   gradients of the clipped losses, summed over the micro-batches of a mini-batch
                 with the weights of learner.loss_aggregation (`passes`, `update`)
    apply        the sum, clipped, by optax (`update`)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import Program, is_abstract
from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.models.lora import merge_adapters, without_adapters
from sr1_jax.rl import program_keys
from sr1_jax.rl.aggregation import Totals, count_totals
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.kl_control import adaptive_kl_coefficient
from sr1_jax.rl.micro_batches import (
    MicroBatch,
    micro_batch_shapes,
    padding_share,
    plan_micro_batches,
    shared_share,
)
from sr1_jax.rl.passes import Passes
from sr1_jax.rl.prepare import (
    Given,
    Prepared,
    Scores,
    kept_trajectories,
    prepare,
    step_shapes,
)
from sr1_jax.rl.settings import check_config, minibatches, needs_critic, optimizer_steps
from sr1_jax.rl.shared_prefixes import groups_together
from sr1_jax.rl.step_metrics import over_updates
from sr1_jax.rl.trained_model import TrainedModel, shapes_of
from sr1_jax.rl.update import ModelState, Update, frozen_copy, on_chip, rate_schedule
from sr1_jax.sharding import batch_parts, named, place, tree_shardings


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


class StepResult(NamedTuple):
    """What a step leaves.

    Attributes:
        state: the new one.
        metrics: averaged over the updates that were done; policy/skipped and critic/skipped
            count the others.
        prepared: the batch with its advantages, on the mesh, for `Learner.rows_of`.
    """

    state: LearnerState
    metrics: dict[str, float]
    prepared: Prepared


class Learner:
    """PPO, or an algorithm without a critic, on a mesh.

    Where a model has adapters, only they are trained, and the critic's head. The base is
    shared with the model given; without its adapters it is the reference.

    The learner holds no state of training. It holds the parameters it was given, for
    `initial_state`, until it is first given a state; a run that goes on from a checkpoint restores
    `abstract_state` and never builds another.

    Args:
        policy: the policy; its parameters are copied as the frozen reference. Given a model
            of shapes (`nnx.eval_shape`) the learner cannot step, but lists the programs of one
            that can.
        critic: the value model, for algorithms that need one.
        config: see `settings.default_config`.
        mesh: the device mesh.
        trajectories: B, trajectories a step.
        steps: of the run; warm-up and decay of learning rates are shares of it.
        temperature: of sampling.

    Attributes:
        reference: parameters of the reference; None without a KL term, unless the policy has
            adapters.

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
        steps: int,
        temperature: float = 1.0,
    ):
        check_config(config, trajectories)
        _check_models(critic, config, mesh)
        self._config = config
        self._mesh = mesh
        self._trajectories = trajectories
        self._abstract = is_abstract(nnx.state(policy))
        self._lora = policy.config.lora
        rate = functools.partial(
            rate_schedule,
            decay_share=config.decay_share,
            updates=optimizer_steps(config, trajectories, steps),
        )
        schedule = rate(config.learning_rate, warmup_share=config.warmup_share)
        self._policy = TrainedModel(policy, schedule, config, mesh)
        self._critic = None
        if critic is not None:
            schedule = rate(config.critic_learning_rate, warmup_share=config.critic_warmup_share)
            self._critic = TrainedModel(critic, schedule, config, mesh)
        self.reference = self._reference_of(policy)
        adapted = self._lora is not None
        passes = Passes(
            config,
            mesh,
            temperature,
            policy=self._policy.graph,
            reference=nnx.graphdef(without_adapters(policy)) if adapted else self._policy.graph,
            critic=None if critic is None else self._critic.graph,
        )
        self._jit(passes)

    def _reference_of(self, policy: Decoder) -> Any:
        """Parameters of the frozen reference, where anything reads them."""
        config = self._config
        if self._lora is not None:
            return self._policy.frozen
        if config.kl_in == "none":
            return None
        return frozen_copy(
            self._policy.given,
            self._mesh,
            dtype=policy.config.dtype,
            offload="reference" in config.offload,
        )

    def _jit(self, passes: Passes) -> None:
        """The programs; nothing is compiled before it is called."""
        mesh, by_row, whole = self._mesh, named(self._mesh, "batch"), named(self._mesh)
        self._score = jax.jit(
            passes.score,
            donate_argnums=0,
            static_argnames=("length", "trained"),
            out_shardings=by_row,
        )
        self._prepare = jax.jit(
            functools.partial(prepare, config=self._config), out_shardings=(by_row, None)
        )
        self._kept = jax.jit(kept_trajectories, out_shardings=(by_row, whole))
        self._totals = jax.jit(_totals_of_rows)
        self._gather = jax.jit(
            lambda arrays, trains_BT, rows: {
                name: jnp.where(trains_BT[rows] != 0, x_BT[rows], 0.0)
                for name, x_BT in arrays.items()
            },
            out_shardings=whole,
        )
        policy, critic = self._policy, self._critic
        self._update_policy = _update_of("policy", passes.policy_loss, policy, mesh)
        if critic is not None:
            self._update_critic = _update_of("critic", passes.critic_loss, critic, mesh)
        if self._lora is not None:
            self._merge = jax.jit(
                lambda params, frozen: merge_adapters(nnx.merge_state(params, frozen), self._lora),
                out_shardings=tree_shardings(self.reference, mesh),
            )

    @property
    def abstract_state(self) -> LearnerState:
        """Shapes with shardings of a state: what a checkpoint is restored into."""
        scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=named(self._mesh))
        critic = None if self._critic is None else self._critic.abstract_state
        return LearnerState(self._policy.abstract_state, critic, scalar)

    def initial_state(self) -> LearnerState:
        """The state of a run that starts: a new one each time, of which nothing is kept.

        Raises:
            RuntimeError: the learner has been given a state before.
        """
        if self._abstract:
            return self.abstract_state
        config = self._config
        coefficient = np.float32(0 if config.kl_in == "none" else config.kl_coefficient)
        return LearnerState(
            policy=self._policy.initial_state(),
            critic=None if self._critic is None else self._critic.initial_state(),
            kl_coefficient=place(coefficient, named(self._mesh)),
        )

    def step(
        self, state: LearnerState, batch: Batch, *, seed: int, step: int, rate_scale: float = 1.0
    ) -> StepResult:
        """One step over a batch: advantages, then config.epochs passes of updates.

        An update whose loss or gradient is not finite is skipped: see `Update`.

        Args:
            state: donated; use the returned one.
            batch: of `make_batch`, B as given to the constructor; the same in every process.
            seed, step: decide the shuffle into mini-batches.
            rate_scale: what the learning rates are multiplied by.

        Returns:
            The new state, metrics, and the batch with its advantages.

        Raises:
            ValueError: a trajectory is longer than the last of learner.length_buckets.
        """
        self._forget_given()
        everything = np.arange(self._trajectories)
        on_mesh = place(batch, named(self._mesh, "batch"))
        scores = self._scores(state, on_mesh, self._plan_scores(batch))
        prepared, metrics = self._prepare(on_mesh, scores, state.kl_coefficient)
        given = Given(prepared, prepared.trains_BT, prepared)
        if not self._config.mask_advantages:
            sampled = prepared._replace(trains_BT=on_mesh.sampled_BT)
            given = Given(sampled, sampled.trains_BT, prepared)
        trains_BT = batch.trains_BT
        if self._config.skip_zero_advantages:
            passes_BT, kept_B = self._kept(prepared.trains_BT, prepared.advantages_BT)
            given = given._replace(policy=prepared._replace(trains_BT=passes_BT))
            trains_BT = trains_BT * jax.device_get(kept_B)[:, None]
        rng = np.random.default_rng((seed, step))
        history: list[dict[str, jax.Array]] = []
        plans: list[MicroBatch] = []
        for _ in range(self._config.epochs):
            order = rng.permutation(everything)
            if self._config.share_prefixes:
                order = groups_together(order, batch.group_B)
            for rows in np.split(order, minibatches(self._config, self._trajectories)):
                plan = self._plan(batch, rows, trains_BT)
                plans += plan
                state, logged = self._update(state, given, plan, rows, rate_scale)
                history.append(logged)
        history, metrics, coefficient = jax.device_get((history, metrics, state.kl_coefficient))
        means = over_updates(history)
        # Before the first update the trainer has the sampler's own weights, so what is left of
        # the difference is numerics: the sampler/trainer mismatch.
        gaps = [float(logged["policy/old_logp_gap"]) for logged in history]
        means["rollout_gap"] = next((gap for gap in gaps if not np.isnan(gap)), np.nan)
        means |= {key: float(value) for key, value in metrics.items()}
        means["padding_share"] = padding_share(trains_BT, plans)
        if self._config.share_prefixes:
            means["shared_share"] = shared_share(trains_BT, plans)
        means["kl_coefficient"] = float(coefficient)
        state = state._replace(kl_coefficient=self._next_kl_coefficient(state, means))
        return StepResult(state, means, prepared)

    def _plan(self, batch: Batch, rows: np.ndarray, trains_BT: np.ndarray) -> list[MicroBatch]:
        return plan_micro_batches(
            trains_BT, rows, self._config, ids_BT=batch.ids_BT, group_B=batch.group_B
        )

    def _plan_scores(self, batch: Batch) -> list[MicroBatch]:
        """Micro-batches of all trajectories, each once."""
        parts, order = 1, np.arange(self._trajectories)
        if self._config.share_prefixes:  # a micro-batch has a place for all of a mini-batch
            parts = minibatches(self._config, self._trajectories)
            order = groups_together(order, batch.group_B)
        rows = np.split(order, parts)
        return [one for some in rows for one in self._plan(batch, some, batch.trains_BT)]

    def _update(
        self,
        state: LearnerState,
        given: Given,
        plan: Sequence[MicroBatch],
        rows: np.ndarray,
        rate_scale: float,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """An optimizer step of each model over a mini-batch."""
        totals = self._totals(given.policy, given.counted_BT, rows)
        policy, logged = self._update_policy(
            state.policy,
            given.policy,
            plan,
            totals,
            state.kl_coefficient,
            self._policy.frozen,
            rate_scale=rate_scale,
        )
        metrics = {f"policy/{key}": value for key, value in logged.items()}
        critic = state.critic
        if critic is not None:
            if given.critic is not given.policy:
                totals = self._totals(given.critic, given.critic.trains_BT, rows)
            critic, logged = self._update_critic(
                critic, given.critic, plan, totals, self._critic.frozen, rate_scale=rate_scale
            )
            metrics |= {f"critic/{key}": value for key, value in logged.items()}
        return LearnerState(policy, critic, state.kl_coefficient), metrics

    def _next_kl_coefficient(self, state: LearnerState, means: dict[str, float]) -> jax.Array:
        """Steered towards learner.kl_target by the KL before the updates, or as it was."""
        config = self._config
        if config.kl_target is None or not np.isfinite(means["kl"]):
            return state.kl_coefficient  # the updates were skipped
        coefficient = adaptive_kl_coefficient(
            means["kl_coefficient"],
            means["kl"],
            target=config.kl_target,
            horizon=config.kl_horizon,
            batch_size=self._trajectories,
        )
        return place(np.float32(coefficient), named(self._mesh))

    def rows_of(self, prepared: Prepared, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """What the updates were given for some trajectories of a step; every process calls it.

        Args:
            prepared: of a `StepResult`.
            rows: of the batch, the same in every process. Each number of rows is a program.

        Returns:
            float32 [rows, T] by name, 0 on tokens that do not train: "advantages"; with a critic
            "values" and "returns"; with a KL term "ref_logp".
        """
        arrays = {"advantages": prepared.advantages_BT}
        if self._critic is not None:
            arrays |= {"values": prepared.old_values_BT, "returns": prepared.returns_BT}
        if self._config.kl_in != "none":
            arrays["ref_logp"] = prepared.ref_logp_BT
        rows = np.asarray(rows, np.int32)
        return jax.device_get(self._gather(arrays, prepared.trains_BT, rows))

    def policy_params(self, state: LearnerState) -> nnx.State:
        """All parameters of the policy as a plain decoder has them: what rollouts run with.

        With adapters they are merged into a copy of the base, in its dtype.
        """
        self._forget_given()
        if self._lora is None:
            return state.policy.params
        return self._merge(state.policy.params, self._policy.frozen)

    def programs(self) -> list[Program]:
        """Every program that a step may call, with shapes for arguments; computes nothing.

        Micro-batches have one for each of learner.length_buckets, or, with packing, of
        learner.row_lengths, and each bound on the tokens of a row that train.
        """
        state = self.abstract_state
        longest = self._config.length_buckets[-1]
        batch, scores, prepared = step_shapes(self._trajectories, longest, self._mesh)
        shapes = micro_batch_shapes(self._config, self._trajectories)
        frozen = shapes_of(self._policy.frozen)
        models = self._models(state, abstract=True)
        minibatch = self._trajectories // minibatches(self._config, self._trajectories)
        rows_R = jax.ShapeDtypeStruct((minibatch,), jnp.int32)
        found = [
            Program(
                program_keys.Score(length, trained),
                self._score,
                (scores, batch, *models, rows),
                {"length": length, "trained": trained},
                self._config.micro_batch * length,
            )
            for rows, length, trained in shapes
        ]
        found += [
            Program(program_keys.Prepare(), self._prepare, (batch, scores, state.kl_coefficient)),
            Program(program_keys.Totals(), self._totals, (prepared, prepared.trains_BT, rows_R)),
            *self._update_policy.programs(
                state.policy, prepared, shapes, state.kl_coefficient, frozen
            ),
        ]
        if self._config.skip_zero_advantages:
            arguments = (prepared.trains_BT, prepared.advantages_BT)
            found.append(Program(program_keys.Kept(), self._kept, arguments))
        if state.critic is not None:
            found += self._update_critic.programs(
                state.critic, prepared, shapes, shapes_of(self._critic.frozen)
            )
        if self._lora is not None:
            arguments = (state.policy.params, frozen)
            found.append(Program(program_keys.Merge(), self._merge, arguments))
        return found

    def _models(self, state: LearnerState, *, abstract: bool = False) -> tuple[Any, Any, Any]:
        """Parameters of policy, critic and reference, as `Passes.score` takes them."""
        view = shapes_of if abstract else lambda tree: tree
        critic = None
        if state.critic is not None:
            critic = (state.critic.params, view(self._critic.frozen))
        reference = None
        if self._config.kl_in != "none":
            reference = on_chip(view(self.reference))
        return (state.policy.params, view(self._policy.frozen)), critic, reference

    def _scores(self, state: LearnerState, batch: Batch, plan: Sequence[MicroBatch]) -> Scores:
        """What policy, reference and critic say of the batch."""
        zeros = [np.zeros(batch.ids_BT.shape, np.float32) for _ in Scores._fields]
        scores = place(Scores(*zeros), named(self._mesh, "batch"))
        models = self._models(state)  # on the devices for as long as this takes
        for rows, length, trained in plan:
            scores = self._score(scores, batch, *models, rows, length=length, trained=trained)
        return scores

    def _forget_given(self) -> None:
        for model in (self._policy, self._critic):
            if model is not None:
                model.forget_given()


def _update_of(name: str, loss_fn: Callable, model: TrainedModel, mesh: Mesh) -> Update:
    return Update(name, loss_fn, model.optimizer, model.abstract_state, mesh, model.schedule)


def _check_models(critic: ValueModel | None, config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    if (critic is not None) != needs_critic(config):
        wanted = "needs a critic" if needs_critic(config) else "has none"
        given = "none" if critic is None else "one"
        raise ValueError(f"learner.algorithm={config.algorithm!r} {wanted}, but {given} was given.")
    parts = batch_parts(mesh)
    if config.micro_batch % parts:
        raise ValueError(
            f"learner.micro_batch={config.micro_batch} does not divide over the {parts} devices of "
            "mesh axes data and fsdp."
        )


def _totals_of_rows(passing: Prepared, counted_BT: jax.Array, rows_R: jax.Array) -> Totals:
    return count_totals(
        counted_BT[rows_R], passing.advantages_BT[rows_R], passing.trains_BT[rows_R]
    )
