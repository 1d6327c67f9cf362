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
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
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
    "layer": None,
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

    Raises:
        ValueError: the axes do not multiply to the number of devices.
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
    return jax.make_mesh(
        tuple(shape),
        MESH_AXES,
        devices=devices,
        axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    )


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


def batch_parts(mesh: Mesh | None) -> int:
    """Into how many parts a batch is split over the mesh."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in RULES["batch"]]))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Splits an activation with these logical axes over the current mesh; without one, `x`."""
    mesh = current_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, named(mesh, *axes))


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Partition spec of logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Sharding of an array with the given logical axes."""
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
            raise ValueError(
                f"{path}: axis {axis} of size {size} does not divide over {parts} devices of "
                f"mesh {dict(mesh.shape)}; change the mesh."
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
        _divides(text, axes, array.shape, mesh)
        return NamedSharding(mesh, spec(axes))

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
        _divides(text, axes, array.shape, mesh)
        return NamedSharding(mesh, spec(axes))

    return jax.tree_util.tree_map_with_path(one, tree)
