"""What a model says of its activations while it is traced for a mesh.

Models take no mesh. Whoever compiles one for a mesh says so around the call, `with
compute_on(mesh)`: then `constrain` keeps activations split as the table of axes says, and attention
may choose a kernel for the mesh's devices, which need not be those of this host.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.sharding.axes import PARAMETER_AXES, RULES, named, parts_of, spec

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def compute_on(mesh: Mesh) -> Iterator[None]:
    """While a model is traced inside, its activations are split over `mesh`.

    To be entered inside the function that is jitted: the mesh is read while tracing.
    """
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def current_mesh() -> Mesh | None:
    """The mesh of the innermost `compute_on`; None outside of any."""
    return _MESH.get()


def current_platform() -> str:
    """Platform of the current mesh's devices: "cpu", "tpu", …; "" without a mesh."""
    mesh = current_mesh()
    return "" if mesh is None else mesh.devices.flat[0].platform


def for_own_heads(function: Callable, heads: tuple[int | None, ...], of_results: Any) -> Callable:
    """`function` run by each device of `tensor` for its own heads.

    To be called where the batch axes are split already, inside their `jax.shard_map`; without a
    current mesh, `function` itself.

    Args:
        function: of arrays.
        heads: the axis of heads of each argument; None: it has none.
        of_results: the same of the results, a tree of axes.
    """
    mesh = current_mesh()
    if mesh is None or (mesh.shape[RULES["heads"]] == 1 and current_platform() == "cpu"):
        return function  # a Pallas kernel wants every axis split by hand, those of size 1 too

    def split(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, RULES["heads"])

    return jax.shard_map(
        function,
        in_specs=tuple(map(split, heads)),
        out_specs=jax.tree.map(split, of_results),
        axis_names={RULES["heads"]},
        check_vma=False,
    )


def axis_size(axis: str) -> int:
    """Over how many devices of the current mesh a logical axis is split; 1 without a mesh."""
    return parts_of(axis, current_mesh())


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Splits an activation with these logical axes over the current mesh; without one, `x`."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, named(mesh, *axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _reshard(x: jax.Array, there: NamedSharding, back: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, there)


_reshard.defvjp(
    lambda x, there, back: (_reshard(x, there, back), None),
    # The gradient of a plain constraint is put where the value is: whole on every device.
    lambda there, back, _, gradient: (jax.lax.with_sharding_constraint(gradient, back),),
)


def reshard(x: jax.Array, there: tuple[str | None, ...], back: tuple[str | None, ...]) -> jax.Array:
    """Splits `x` over the current mesh by the logical axes `there`, its gradient by `back`.

    Without a mesh, or where the two are split alike, `x` itself.
    """
    mesh = current_mesh()
    if mesh is None or named(mesh, *there).is_equivalent_to(named(mesh, *back), x.ndim):
        return x
    return _reshard(x, named(mesh, *there), named(mesh, *back))


def gather_layer(params: Any, dtype: str) -> Any:
    """Kernels of one layer in the compute dtype, whole but for `tensor`; gradients go back split.

    Collecting them before they are used lets each product run at once. Left to itself the
    compiler multiplies piece by piece, and reads and writes all of the result each time.

    Args:
        params: of one layer, without the axis of layers.
        dtype: of the activations.
    """
    mesh = current_mesh()
    if mesh is None or mesh.shape["fsdp"] == 1:
        return params

    def one(path, array):
        text = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        stored = PARAMETER_AXES.get(text, ())[1:]
        if "embed" not in stored:
            return array
        whole = tuple(None if axis == "embed" else axis for axis in stored)
        return reshard(array.astype(dtype), whole, stored)

    return jax.tree_util.tree_map_with_path(one, params)


def look_up(table_VD: jax.Array, ids_BT: jax.Array, dtype: str) -> jax.Array:
    """Rows of an embedding split over the current mesh, as activations: [B, T, D].

    A device finds its columns of the tokens of all `fsdp` devices, and trades them for all
    columns of its own tokens: activations travel where the compiler would collect the table. The
    gradient is summed in the dtype of the table.
    """
    mesh = current_mesh()

    def local(table_VD, ids_BT):
        ids_BT = jax.lax.all_gather(ids_BT, "fsdp", axis=0, tiled=True)
        row_BT = ids_BT - jax.lax.axis_index("tensor") * len(table_VD)
        here_BT = (row_BT >= 0) & (row_BT < len(table_VD))
        x_BTD = jnp.where(here_BT[..., None], table_VD[jnp.where(here_BT, row_BT, 0)], 0)
        x_BTD = x_BTD.astype(dtype)
        x_BTD = jax.lax.all_to_all(x_BTD, "fsdp", split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(x_BTD, "tensor")  # all but one are 0

    table, ids = spec(("vocab", "embed")), spec(("batch", None))
    return jax.shard_map(
        local, mesh=mesh, in_specs=(table, ids), out_specs=spec(("batch", None, None))
    )(table_VD, ids_BT)
