"""An optimizer step over a mini-batch that passes the model in micro-batches of several lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from sr1_jax.abstract import Program, is_abstract, placed
from sr1_jax.models.segments import Segments
from sr1_jax.rl.aggregation import Totals
from sr1_jax.rl.micro_batches import MicroBatch
from sr1_jax.sharding import named, tree_shardings


class ModelState(NamedTuple):
    """Parameters and optimizer state of one model."""

    params: Any
    opt_state: Any


def make_optimizer(
    learning_rate: float, warmup_steps: int, config: ml_collections.ConfigDict
) -> optax.GradientTransformation:
    """AdamW with a clipped global norm.

    The rate warms up linearly, then stays, or falls along a cosine to a tenth where
    config.decay_steps, counted from the first step, is not 0.

    With config.optimizer_dtype "bfloat16" the first moment is kept in bfloat16. The second stays
    float32: with b2 = 0.999 a step moves it by a thousandth, and bfloat16 rounds to one part
    in 256, so it would never move.
    """
    if config.decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup_steps, config.decay_steps, 0.1 * learning_rate
        )
    elif warmup_steps:
        schedule = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    else:
        schedule = optax.constant_schedule(learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(
            schedule,
            b2=config.adam_b2,
            weight_decay=config.weight_decay,
            mu_dtype=config.optimizer_dtype,
        ),
    )


def copy_to_mesh(params: Any, mesh: Mesh) -> Any:
    """The parameters, placed on the mesh, in buffers of their own; of shapes, shapes."""
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
        params: of a decoder.
        mesh: where the copy goes.
        dtype: of the model's activations.
        offload: keeps the copy in the memory of the hosts; see `on_chip`.

    Of shapes it makes shapes.
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
        params: copied.
        optimizer: of the model.
        mesh: where the state goes.
        offload_optimizer: keeps the moments in pinned memory of the hosts.

    Of shapes it makes shapes, with the same shardings.
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
    batch: Any, rows: jax.Array | Segments, length: int, mesh: Mesh
) -> tuple[Any, Segments | None]:
    """A micro-batch of each [B, T] array, split over the devices.

    Args:
        batch: tree of arrays.
        rows: of `MicroBatch`: rows of the batch, or for each token where it is taken from.
        length: tokens of a row.
        mesh: of `sharding.make_mesh`.

    Returns:
        The first `length` tokens of the rows, and None; or packed rows, 0 where nothing is, and
        their segments.
    """

    def split(x_RT):
        return jax.lax.with_sharding_constraint(x_RT, named(mesh, "batch"))

    if not isinstance(rows, Segments):
        return jax.tree.map(lambda x_BT: split(x_BT[rows, :length]), batch), None

    def take(x_BT):
        return split(x_BT.at[rows.id_BT, rows.position_BT].get(mode="fill", fill_value=0))

    return jax.tree.map(take, batch), jax.tree.map(split, rows)


def put_rows(x_BT: jax.Array, rows: jax.Array | Segments, x_RT: jax.Array) -> jax.Array:
    """`x_BT` with the values of a micro-batch where `take_rows` would take them from."""
    if isinstance(rows, Segments):
        return x_BT.at[rows.id_BT, rows.position_BT].set(x_RT, mode="drop")
    return x_BT.at[rows, : x_RT.shape[1]].set(x_RT)


def add_gradients(
    loss_fn: Callable, params: Any, grads: Any, micro_batch: Any, totals: Totals
) -> Any:
    """Adds a micro-batch's share of the gradient of a mini-batch's loss.

    Shares add up, so that the sum is the gradient of one large batch, however that is cut.

    Args:
        loss_fn: (params, micro-batch, totals) -> (terms, means): the micro-batch's share of each
            term of the loss, and means over its own tokens.
        params: differentiated.
        grads: what to add to.
        micro_batch: tree with `mask_BT`.
        totals: counts over all micro-batches.

    Returns:
        (gradients, the micro-batch's shares of "loss", the sum of the terms, of each term, and of
        the token means of all micro-batches).
    """
    weight = micro_batch.mask_BT.sum() / jnp.maximum(totals.tokens, 1)

    def share(params):
        terms, means = loss_fn(params, micro_batch, totals)
        loss = sum(terms.values())
        return loss, {k: v * weight for k, v in means.items()} | terms | {"loss": loss}

    more, metrics = jax.grad(share, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, more), metrics


class Update:
    """The jitted optimizer step of one model.

    States and gradients come back where they were found, so that donation works and nothing
    moves between steps.

    Args:
        loss_fn: (params, rows of a batch, totals, most, segments, *context) -> (terms, means) as
            of `add_gradients`, where `most` bounds the trained tokens of a row, and packed rows
            have segments.
        optimizer: of the model.
        state: of the model; only its shapes and shardings are looked at.
        mesh: of `sharding.make_mesh`.
    """

    def __init__(
        self,
        loss_fn: Callable,
        optimizer: optax.GradientTransformation,
        state: ModelState,
        mesh: Mesh,
    ):
        shardings = jax.tree.map(lambda x: x.sharding, state)

        def accumulate(grads, params, batch, rows, totals, context, *, length, most):
            taken, segments = take_rows(batch, rows, length, mesh)
            return add_gradients(
                lambda params, taken, totals: loss_fn(
                    params, taken, totals, most, segments, *context
                ),
                params,
                grads,
                taken,
                totals,
            )

        def apply(state, grads):
            norm = optax.global_norm(grads)
            # Moments that are kept on the hosts come over for the update; the compiler moves
            # each as it is needed, and none in the other case.
            opt_state = jax.tree.map(
                lambda x, where: (
                    jax.device_put(x, where.with_memory_kind("device"))
                    if where.memory_kind == "pinned_host"
                    else x
                ),
                state.opt_state,
                shardings.opt_state,
            )
            updates, opt_state = optimizer.update(grads, opt_state, state.params)
            return ModelState(optax.apply_updates(state.params, updates), opt_state), norm

        self.zeros = jax.jit(
            lambda params: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params),
            out_shardings=shardings.params,
        )
        self.accumulate = jax.jit(
            accumulate,
            donate_argnums=0,
            static_argnames=("length", "most"),
            out_shardings=(shardings.params, None),
        )
        self.apply = jax.jit(apply, donate_argnums=0, out_shardings=(shardings, None))

    def programs(
        self,
        name: str,
        state: ModelState,
        batch: Any,
        kinds: Sequence[MicroBatch],
        *context,
    ) -> list[Program]:
        """Every program that a call may run; computes nothing.

        Args:
            name: of the model.
            state, batch, context: as of a call; arrays or shapes.
            kinds: one micro-batch of each kind that there may be.
        """
        where = jax.tree.map(lambda x: x.sharding, state.params)
        grads = placed(jax.eval_shape(self.zeros, state.params), where)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        totals = Totals(*[scalar] * len(Totals._fields))
        accumulate = [
            Program(
                f"{name} accumulate {length}/{most}",
                self.accumulate,
                (grads, state.params, batch, rows, totals, context),
                {"length": length, "most": most},
                jax.tree.leaves(rows)[0].shape[0] * length,
            )
            for rows, length, most in kinds
        ]
        return [
            Program(f"{name} zeros", self.zeros, (state.params,)),
            *accumulate,
            Program(f"{name} apply", self.apply, (state, grads)),
        ]

    def __call__(
        self, state: ModelState, batch: Any, plan: Sequence[MicroBatch], totals: Totals, *context
    ) -> tuple[ModelState, dict[str, jax.Array]]:
        """One step.

        Args:
            state: donated; use the returned one.
            batch: tree of [B, T] arrays with `mask_BT`.
            plan: of `plan_micro_batches` or `plan_packed`.
            totals: counts over all of it.
            context: handed on to the loss.

        Returns:
            The new state and the metrics: the loss, its terms, and means over the tokens.
        """
        grads, shares = self.zeros(state.params), []
        for rows, length, most in plan:
            grads, metrics = self.accumulate(
                grads, state.params, batch, rows, totals, context, length=length, most=most
            )
            shares.append(metrics)
        metrics = jax.tree.map(lambda *x: sum(x), *shares)
        state, metrics["gradient_norm"] = self.apply(state, grads)
        return state, metrics
