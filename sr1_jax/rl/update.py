"""An optimizer step over a mini-batch that passes the model in micro-batches of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from sr1_jax.abstract import Program, is_abstract, placed
from sr1_jax.models.packed import PackedSequences
from sr1_jax.rl import program_keys
from sr1_jax.rl.aggregation import Totals
from sr1_jax.rl.micro_batches import MicroBatch
from sr1_jax.rl.shared_prefixes import SharedPrefixes
from sr1_jax.rl.step_metrics import EXTREMES
from sr1_jax.sharding import named, tree_shardings


class ModelState(NamedTuple):
    """Parameters and optimizer state of one model."""

    params: Any
    opt_state: Any


def rate_schedule(
    learning_rate: float, *, warmup_share: float, decay_share: float, updates: int
) -> optax.Schedule:
    """The learning rate by optimizer step: it warms up linearly, then stays, or falls along a
    cosine to a tenth.

    Args:
        learning_rate: at its highest.
        warmup_share: of the run; above 0 it is at least one step, if the run has another.
        decay_share: share of the run, warm-up included, after which the rate is a tenth; 0: it
            stays.
        updates: optimizer steps of the run.
    """
    warmup = _whole_steps(warmup_share, updates)
    if decay_share:
        # The cosine takes a step at least, also where both shares round to the same number.
        decay = max(round(decay_share * updates), warmup + 1)
        return optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup, decay, 0.1 * learning_rate
        )
    if warmup:
        return optax.linear_schedule(0.0, learning_rate, warmup)
    return optax.constant_schedule(learning_rate)


def _whole_steps(share: float, updates: int) -> int:
    # One update at least is left at the full rate: a run of a single one would train at rate 0.
    return min(max(1, round(share * updates)), max(updates - 1, 0)) if share else 0


def make_optimizer(
    schedule: optax.Schedule, config: ml_collections.ConfigDict
) -> optax.GradientTransformation:
    """AdamW with a clipped global norm.

    With config.optimizer_dtype "bfloat16" the first moment is kept in bfloat16. The second stays
    float32: with b2 = 0.999 a step moves it by a thousandth, and bfloat16 rounds to one part
    in 256, so it would never move.

    Args:
        schedule: learning rate by optimizer step.
        config: of the learner.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(
            schedule,
            b2=config.adam_b2,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            mu_dtype=config.optimizer_dtype,
        ),
    )


def copy_to_mesh(params: Any, mesh: Mesh) -> Any:
    """The parameters, placed on the mesh, in buffers of their own; given shapes, shapes."""
    if is_abstract(params):
        return placed(params, tree_shardings(params, mesh))
    # jit gives new buffers: donating them cannot touch the caller's.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=tree_shardings(params, mesh)
    )
    return copy(params)


def frozen_copy(params: Any, mesh: Mesh, *, dtype: str, offload: bool) -> Any:
    """Parameters that are only read: a copy with matrices in the compute dtype.

    Layers cast matrices to it anyway, so no result changes; scales and biases stay as they are.

    Args:
        params: of a decoder; arrays or shapes.
        mesh: the device mesh that the copy goes to.
        dtype: of the model's activations.
        offload: keeps the copy in the memory of the hosts; see `on_chip`.

    Returns:
        The copy; given shapes, its shapes with their shardings.
    """

    def one(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matrix = "kernel" in name or "embedding" in name
        return array.astype(dtype) if matrix else jnp.copy(array)

    def copy(tree):
        return jax.tree_util.tree_map_with_path(one, tree)

    where = tree_shardings(params, mesh)
    where = on_host(where) if offload else where
    if is_abstract(params):
        return placed(jax.eval_shape(copy, params), where)
    return jax.jit(copy, out_shardings=where)(params)


def on_host(shardings: Any) -> Any:
    """The same shardings in pinned memory of the hosts; what is not split (counters) stays."""

    def one(sharding):
        return sharding if len(sharding.spec) == 0 else sharding.with_memory_kind("pinned_host")

    return jax.tree.map(one, shardings)


def on_chip(tree: Any) -> Any:
    """Arrays in the memory of the devices they belong to; those that are there stay."""
    where = jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), tree)
    return placed(tree, where) if is_abstract(tree) else jax.device_put(tree, where)


def place_model(
    params: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    offload_optimizer: bool = False,
) -> ModelState:
    """A copy of the parameters and a fresh optimizer state, initialised straight into place.

    Args:
        params: copied; arrays or shapes.
        optimizer: of the model.
        mesh: the device mesh that the state goes to.
        offload_optimizer: keeps the moments in pinned memory of the hosts.

    Returns:
        The state; given shapes, its shapes with their shardings.
    """
    shapes = jax.eval_shape(optimizer.init, params)
    where = tree_shardings(shapes, mesh)
    if offload_optimizer:
        where = on_host(where)
    params = copy_to_mesh(params, mesh)
    if is_abstract(params):
        return ModelState(params, placed(shapes, where))
    return ModelState(params, jax.jit(optimizer.init, out_shardings=where)(params))


def take_rows(
    batch: Any, rows: jax.Array | PackedSequences | SharedPrefixes, length: int, mesh: Mesh
) -> tuple[Any, PackedSequences | SharedPrefixes | None]:
    """A micro-batch of each [B, T] array, split over the devices.

    Args:
        batch: tree of arrays.
        rows: of `MicroBatch`: rows of the batch, or for each token where it is taken from.
        length: tokens of a row.
        mesh: the device mesh.

    Returns:
        The first `length` tokens of the rows, and None; or packed rows, 0 where nothing is, and
        the sequence and position of their tokens; or, with shared prefixes, a row for each of the
        trajectories, on all devices, and the layout whose rows are split.
    """

    def split(x_RT):
        return jax.lax.with_sharding_constraint(x_RT, named(mesh, "batch"))

    if isinstance(rows, SharedPrefixes):
        whole = named(mesh)
        taken = jax.tree.map(
            lambda x_BT: jax.lax.with_sharding_constraint(
                x_BT.at[rows.rows_N].get(mode="fill", fill_value=0), whole
            ),
            batch,
        )
        of_rows = jax.tree.map(split, (rows.source_RL, rows.wanted_RL, rows.trees))
        return taken, SharedPrefixes(rows.rows_N, rows.place_NT, *of_rows)

    if not isinstance(rows, PackedSequences):
        return jax.tree.map(lambda x_BT: split(x_BT[rows, :length]), batch), None

    def take(x_BT):
        return split(x_BT.at[rows.id_BT, rows.position_BT].get(mode="fill", fill_value=0))

    return jax.tree.map(take, batch), jax.tree.map(split, rows)


def put_rows(
    x_BT: jax.Array, rows: jax.Array | PackedSequences | SharedPrefixes, x_RT: jax.Array
) -> jax.Array:
    """`x_BT` with the values of a micro-batch where `take_rows` would take them from."""
    if isinstance(rows, SharedPrefixes):
        return x_BT.at[rows.rows_N].set(x_RT, mode="drop")
    if isinstance(rows, PackedSequences):
        return x_BT.at[rows.id_BT, rows.position_BT].set(x_RT, mode="drop")
    return x_BT.at[rows, : x_RT.shape[1]].set(x_RT)


def add_gradients(
    loss_fn: Callable, params: Any, grads: Any, micro_batch: Any, totals: Totals
) -> Any:
    """Adds a micro-batch's share of the gradient of a mini-batch's loss.

    Shares add up, so that the sum is the gradient of one large batch, however it is divided.

    Args:
        loss_fn: (params, micro-batch, totals) -> (terms, means): the micro-batch's share of each
            term of the loss, and means (or `EXTREMES`) over its own tokens.
        params: differentiated.
        grads: what to add to.
        micro_batch: tree with `trains_BT`.
        totals: counts over all micro-batches.

    Returns:
        (gradients, the micro-batch's shares of "loss", the sum of the terms, of each term, and of
        the token means of all micro-batches; of `EXTREMES` its own).
    """
    weight = micro_batch.trains_BT.sum() / jnp.maximum(totals.passed, 1)
    # There is no mean over tokens where all of a mini-batch are left out.
    known = jnp.where((totals.passed == 0) & (totals.tokens > 0), jnp.nan, 1.0)

    def share(params):
        terms, means = loss_fn(params, micro_batch, totals)
        loss = sum(terms.values())
        shares = {k: known * (v if k in EXTREMES else v * weight) for k, v in means.items()}
        return loss, shares | terms | {"loss": loss}

    more, metrics = jax.grad(share, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, more), metrics


class Update:
    """The jitted optimizer step of one model.

    States and gradients come back where they were found, so that donation works and nothing
    moves between steps.

    Args:
        name: of the model, for the keys of its programs.
        loss_fn: (params, micro-batch, totals, trained, packed, *context) -> (terms, means) as of
            `add_gradients`, where `trained` bounds the tokens of a row that train, and `packed`
            tells the sequences of packed rows apart, or is None.
        optimizer: of the model.
        state: of the model; only its shapes and shardings are looked at.
        mesh: the device mesh.
        schedule: learning rate by optimizer step, to be logged; None: it is not.
    """

    def __init__(
        self,
        name: str,
        loss_fn: Callable,
        optimizer: optax.GradientTransformation,
        state: ModelState,
        mesh: Mesh,
        schedule: optax.Schedule | None = None,
    ):
        self._name = name
        self._loss_fn = loss_fn
        self._optimizer = optimizer
        self._schedule = schedule
        self._mesh = mesh
        self._shardings = shardings = jax.tree.map(lambda x: x.sharding, state)
        self.zeros = jax.jit(
            lambda params: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params),
            out_shardings=shardings.params,
        )
        self.accumulate = jax.jit(
            self._accumulate_fn,
            donate_argnums=0,
            static_argnames=("length", "trained"),
            out_shardings=(shardings.params, None),
        )
        self.apply = jax.jit(self._apply_fn, donate_argnums=0, out_shardings=(shardings, None))

    def programs(
        self, state: ModelState, batch: Any, shapes: Sequence[MicroBatch], *context
    ) -> list[Program]:
        """Every program that a call may run; computes nothing.

        Args:
            state, batch, context: as of a call; arrays or shapes.
            shapes: one micro-batch of each shape that there may be.
        """
        grads = placed(jax.eval_shape(self.zeros, state.params), self._shardings.params)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        totals = Totals(*[scalar] * len(Totals._fields))
        accumulate = [
            Program(
                program_keys.Accumulate(self._name, length, trained),
                self.accumulate,
                (grads, state.params, batch, rows, totals, context),
                {"length": length, "trained": trained},
                _rows_of(rows) * length,
            )
            for rows, length, trained in shapes
        ]
        return [
            Program(program_keys.Zeros(self._name), self.zeros, (state.params,)),
            *accumulate,
            Program(program_keys.Apply(self._name), self.apply, (state, grads, scalar, scalar)),
        ]

    def __call__(
        self,
        state: ModelState,
        batch: Any,
        plan: Sequence[MicroBatch],
        totals: Totals,
        *context,
        rate_scale: float = 1.0,
    ) -> tuple[ModelState, dict[str, jax.Array]]:
        """One step, or none: where the loss or a gradient is not finite, the state stays as it is,
        bit for bit, the optimizer's counters included.

        Args:
            state: donated; use the returned one.
            batch: tree of [B, T] arrays with `trains_BT`.
            plan: of `plan_micro_batches`.
            totals: counts over all of it.
            context: handed on to the loss.
            rate_scale: what the learning rate is multiplied by.

        Returns:
            The new state and the metrics: the loss, its terms, means over the tokens, and those of
            `apply`.
        """
        grads, shares = self.zeros(state.params), []
        for rows, length, trained in plan:
            grads, metrics = self.accumulate(
                grads, state.params, batch, rows, totals, context, length=length, trained=trained
            )
            shares.append(metrics)
        metrics = {key: _put_together(key, [one[key] for one in shares]) for key in shares[0]}
        state, applied = self.apply(state, grads, metrics["loss"], np.float32(rate_scale))
        return state, metrics | applied

    def _accumulate_fn(self, grads, params, batch, rows, totals, context, *, length, trained):
        micro_batch, packed = take_rows(batch, rows, length, self._mesh)

        def loss_fn(params, micro_batch, totals):
            return self._loss_fn(params, micro_batch, totals, trained, packed, *context)

        return add_gradients(loss_fn, params, grads, micro_batch, totals)

    def _apply_fn(self, state: ModelState, grads, loss, rate_scale):
        """The optimizer's step, or the state as it was.

        Returns:
            The state; gradient_norm, before it is clipped; skipped, 1 where nothing was done, else
            0; learning_rate, where the schedule is known.
        """
        norm = optax.global_norm(grads)
        # A number that is not finite anywhere in the gradient makes the norm so; so do gradients
        # whose squares overflow, of which Adam could make nothing either.
        good = jnp.isfinite(norm) & jnp.isfinite(loss)
        # Moments that are kept on the hosts come over for the update; the compiler moves each as
        # it is needed, and none in the other case.
        opt_state = jax.tree.map(
            lambda x, where: (
                jax.device_put(x, where.with_memory_kind("device"))
                if where.memory_kind == "pinned_host"
                else x
            ),
            state.opt_state,
            self._shardings.opt_state,
        )
        metrics = {"gradient_norm": norm, "skipped": 1.0 - good.astype(jnp.float32)}
        if self._schedule is not None:
            metrics["learning_rate"] = rate_scale * self._schedule(_updates_done(opt_state))
        updates, moved = self._optimizer.update(grads, opt_state, state.params)
        # The rate is the last factor of an update, weight decay included.
        updates = jax.tree.map(lambda x: x * rate_scale.astype(x.dtype), updates)
        new = ModelState(optax.apply_updates(state.params, updates), moved)
        old = ModelState(state.params, opt_state)
        return jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old), metrics


def _rows_of(rows: Any) -> int:
    """Rows that pass the model, of a `MicroBatch`."""
    if isinstance(rows, SharedPrefixes):
        return rows.source_RL.shape[0]
    return jax.tree.leaves(rows)[0].shape[0]


def _put_together(key: str, values: Sequence[jax.Array]) -> jax.Array:
    """A metric of a mini-batch from its shares, or its extremes, of micro-batches."""
    if key in EXTREMES:
        values = jnp.stack(values)
        return jnp.max(values) if EXTREMES[key] is max else jnp.min(values)
    return sum(values)


def _updates_done(opt_state: Any) -> jax.Array:
    """Optimizer steps so far, by which the schedule goes."""

    def by_schedule(x):
        return isinstance(x, optax.ScaleByScheduleState)

    states = jax.tree.leaves(opt_state, is_leaf=by_schedule)
    return next(state.count for state in states if by_schedule(state))
