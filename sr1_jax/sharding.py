"""Where arrays live: one table of logical axes, one of mesh axes.

Every parameter has logical axes by its name; every logical axis maps to mesh axes. The mesh is
`data × fsdp × tensor`, also when it has one device.

Models take no mesh. Whoever compiles one for a mesh says so around the call, `with
compute_on(mesh)`: then `constrain` keeps activations split as the table says, and attention may
choose a kernel for the mesh's devices, which need not be those of this host.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes.
RULES: dict[str | None, tuple[str, ...] | str | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ff": "tensor",
    "sequence": "tensor",
    "layer": None,
    # The output head takes the tokens of all `fsdp` devices and splits the vocabulary over them,
    # too: a chunk of hidden states is a tenth of the head's weights.
    "head_batch": "data",
    "head_vocab": ("tensor", "fsdp"),
    None: None,
}

# End of a parameter's path -> its logical axes. Layers are stacked in front.
PARAMETER_AXES: dict[str, tuple[str | None, ...]] = {
    "trunk/embed/embedding": ("vocab", "embed"),
    "trunk/norm/scale": (None,),
    "attention_norm/scale": ("layer", None),
    "ff_norm/scale": ("layer", None),
    "attention/q/kernel": ("layer", "embed", "heads", None),
    "attention/k/kernel": ("layer", "embed", "kv_heads", None),
    "attention/v/kernel": ("layer", "embed", "kv_heads", None),
    "attention/o/kernel": ("layer", "heads", None, "embed"),
    "attention/q/bias": ("layer", "heads", None),
    "attention/k/bias": ("layer", "kv_heads", None),
    "attention/v/bias": ("layer", "kv_heads", None),
    "attention/q_norm/scale": ("layer", None),
    "attention/k_norm/scale": ("layer", None),
    "ff/gate/kernel": ("layer", "embed", "ff"),
    "ff/up/kernel": ("layer", "embed", "ff"),
    "ff/down/kernel": ("layer", "ff", "embed"),
    "attention/q/lora_a": ("layer", "embed", None),
    "attention/q/lora_b": ("layer", None, "heads", None),
    "attention/k/lora_a": ("layer", "embed", None),
    "attention/k/lora_b": ("layer", None, "kv_heads", None),
    "attention/v/lora_a": ("layer", "embed", None),
    "attention/v/lora_b": ("layer", None, "kv_heads", None),
    "attention/o/lora_a": ("layer", "heads", None, None),
    "attention/o/lora_b": ("layer", None, "embed"),
    "ff/gate/lora_a": ("layer", "embed", None),
    "ff/gate/lora_b": ("layer", None, "ff"),
    "ff/up/lora_a": ("layer", "embed", None),
    "ff/up/lora_b": ("layer", None, "ff"),
    "ff/down/lora_a": ("layer", "ff", None),
    "ff/down/lora_b": ("layer", None, "embed"),
    "head/kernel": ("embed", "vocab"),
    "head/bias": (None,),
}

# Field of `models.serving.ServingParams` -> its logical axes: `tensor` is all that splits them.
SERVING_AXES: dict[str, tuple[str | None, ...]] = {
    "embed_VD": ("vocab", None),
    "norm_D": (None,),
    "head_VD": ("vocab", None),
    "attention_norm_D": (None,),
    "qkv_KJED": ("kv_heads", None, None, None),
    "qkv_bias_KJE": ("kv_heads", None, None),
    "q_norm_E": (None,),
    "k_norm_E": (None,),
    "o_DKGE": (None, "kv_heads", None, None),
    "ff_norm_D": (None,),
    "gate_up_2FD": (None, "ff", None),
    "down_DF": (None, "ff"),
}

CACHE_AXES = ("batch", "kv_heads")  # of keys and of values; what follows is whole


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what is left.

    Neighbours on an axis are neighbours in the network, as far as its shape allows. Of several
    TPU slices each holds an equal part of `data`: between slices nothing but gradients has
    to travel, once an update.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or `data` does not divide
            over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise ValueError(f"mesh {shape}: sizes are positive, and at most one is -1.")
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {len(devices)} devices: "
            "the sizes must multiply to that number."
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return Mesh(device_grid(shape, devices), MESH_AXES, axis_types=axis_types)


def device_grid(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the order of the mesh.

    Args:
        shape: sizes of data, fsdp and tensor.
        devices: as many as they multiply to. Where they name a slice, `slice_index`, fsdp and
            tensor stay within one; tensor also within a host, `process_index`, whose devices it
            divides: the hosts of the rollout engine share no slot.

    Raises:
        ValueError: `data` does not divide over the slices.
    """
    data, fsdp, tensor = shape
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Without splitting them, axes as long as 16 would not fit the four sides of a v5p cube.
    options = dict(allow_split_physical_axes=True)
    if slices == 1:
        return _tensor_on_hosts(mesh_utils.create_device_mesh(shape, devices, **options))
    if data % slices:
        raise ValueError(
            f"mesh data={data} does not divide over {slices} TPU slices: fsdp and tensor stay "
            f"within a slice, so make data a multiple of {slices}."
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, **options
    )
    return np.concatenate([_tensor_on_hosts(part) for part in np.split(grid, slices)])


def _tensor_on_hosts(grid: np.ndarray) -> np.ndarray:
    """The devices with each run along the last axis on one host, where that can be.

    A TPU host has a square of chips, and a run of four along a side of the slice would be on two
    hosts. Hosts follow each other row by row: back and forth would make each a neighbour of the
    next, but then the TPU compiler finds no routes for some collectives.
    """
    on_one = all(len({_host(d) for d in run}) == 1 for run in grid.reshape(-1, grid.shape[-1]))
    hosts: dict[int, list[Any]] = {}
    for device in sorted(grid.flat, key=lambda device: device.id):
        hosts.setdefault(_host(device), []).append(device)
    if on_one or any(len(local) % grid.shape[-1] for local in hosts.values()):
        return grid
    rows = sorted(hosts.values(), key=lambda local: min(tuple(d.coords)[::-1] for d in local))
    order = [device for local in rows for device in local]
    found = np.empty(len(order), object)
    found[:] = order
    return found.reshape(grid.shape)


def _host(device: Any) -> int:
    return getattr(device, "process_index", 0)


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


def batch_parts(mesh: Mesh | None) -> int:
    """Into how many parts a batch is split over the mesh."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def axis_size(axis: str) -> int:
    """Over how many devices of the current mesh a logical axis is split; 1 without a mesh."""
    mesh, names = current_mesh(), RULES[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in names)


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


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Partition spec of logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Sharding of an array with the given logical axes."""
    return NamedSharding(mesh, spec(axes))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays as arrays on the mesh; a process copies only what its own devices hold.

    Args:
        tree: of arrays that are the same in every process.
        sharding: of each.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        tree,
    )


def _named(mesh: Mesh, path: str, axes, shape) -> NamedSharding:
    """Sharding of a parameter, checked.

    Raises:
        ValueError: an axis does not divide, or two axes want the same axis of the mesh.
    """
    _divides(path, axes, shape, mesh)
    taken = [name for axis in axes for name in np.atleast_1d(RULES[axis] or [])]
    for name in set(taken):
        if taken.count(name) > 1:
            both = [axis for axis in axes if name in np.atleast_1d(RULES[axis] or [])]
            raise ValueError(
                f"{path} {tuple(shape)}: axes {' and '.join(map(str, both))} are both split over "
                f"mesh axis {name} by RULES; an array can be split over it once."
            )
    return NamedSharding(mesh, spec(axes))


def _axes_of(path: str, array: Any) -> tuple[str | None, ...]:
    name = path.removesuffix("/value")
    for ending, axes in PARAMETER_AXES.items():
        # The critic's head is as thin as one column: nothing to shard over the vocabulary.
        if name.endswith(ending) and len(axes) == array.ndim:
            return ("embed", None) if ending == "head/kernel" and array.shape[1] == 1 else axes
    if not any(part in name for part in ("trunk/", "head/")):
        return (None,) * array.ndim  # of the optimizer itself: counters, coefficients
    raise ValueError(f"Parameter {path} {array.shape} has no entry in PARAMETER_AXES.")


def _divides(path: str, axes, shape, mesh: Mesh) -> None:
    for axis, size in zip(axes, shape):
        parts = int(np.prod([mesh.shape[name] for name in np.atleast_1d(RULES[axis] or [])]))
        if size % max(parts, 1):
            advice = "change the mesh."
            if axis == "kv_heads":
                # Shared out, every device would keep the cache of a whole head in rollouts: the
                # memory that `tensor` is there to divide.
                advice = f"tensor can be at most {size}: put more of the mesh on fsdp or data."
            raise ValueError(
                f"{path}: axis {axis} of size {size} does not divide over {parts} devices of "
                f"mesh {dict(mesh.shape)}; {advice}"
            )


def serving_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of parameters in the layout of rollouts: split over `tensor` and nothing else.

    Args:
        tree: a `models.serving.ServingParams` of arrays or shapes.
        mesh: of `make_mesh`.

    Raises:
        ValueError: as `tree_shardings`.
    """

    def one(path, array):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        if text.endswith("/scale"):  # of an int8 weight
            return named(mesh)
        name = text.removesuffix("/values").rpartition("/")[2]
        if name not in SERVING_AXES:
            raise ValueError(f"Parameter {text} {array.shape} has no entry in SERVING_AXES.")
        axes = SERVING_AXES[name]
        return _named(mesh, text, axes, array.shape)

    return jax.tree_util.tree_map_with_path(one, tree)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of parameters or of optimizer state (whose moments end alike).

    Args:
        tree: arrays or shapes.
        mesh: of `make_mesh`.

    Raises:
        ValueError: a parameter without logical axes, or a size that the mesh does not divide.
    """

    def one(path, array):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = _axes_of(text, array)
        return _named(mesh, text, axes, array.shape)

    return jax.tree_util.tree_map_with_path(one, tree)
