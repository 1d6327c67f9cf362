"""Where the arrays of a tree live: shardings of parameters by their names, checked."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sr1_jax.sharding.axes import (
    PARAMETER_AXES,
    SERVING_AXES,
    mesh_axes,
    named,
    parts_of,
)


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


def serving_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of parameters in the layout of rollouts: split over `tensor` and nothing else.

    Args:
        tree: a `models.serving.ServingParams` of arrays or shapes.
        mesh: the device mesh.

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
        mesh: the device mesh.

    Raises:
        ValueError: a parameter without logical axes, or a size that the mesh does not divide.
    """

    def one(path, array):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = _axes_of(text, array)
        return _named(mesh, text, axes, array.shape)

    return jax.tree_util.tree_map_with_path(one, tree)


def _named(mesh: Mesh, path: str, axes, shape) -> NamedSharding:
    """Sharding of a parameter, checked.

    Raises:
        ValueError: an axis does not divide, or two axes want the same axis of the mesh.
    """
    _divides(path, axes, shape, mesh)
    taken = [name for axis in axes for name in mesh_axes(axis)]
    for name in set(taken):
        if taken.count(name) > 1:
            both = [axis for axis in axes if name in mesh_axes(axis)]
            raise ValueError(
                f"{path} {tuple(shape)}: axes {' and '.join(map(str, both))} are both split over "
                f"mesh axis {name} by RULES; an array can be split over it once."
            )
    return named(mesh, *axes)


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
        parts = parts_of(axis, mesh)
        if size % parts:
            advice = "change the mesh."
            if axis == "kv_heads":
                # Shared out, every device would keep the cache of a whole head in rollouts: the
                # memory that `tensor` is there to divide.
                advice = f"tensor can be at most {size}; give fsdp or data more of the mesh."
            raise ValueError(
                f"{path}: axis {axis} of size {size} does not divide over {parts} devices of "
                f"mesh {dict(mesh.shape)}; {advice}"
            )
