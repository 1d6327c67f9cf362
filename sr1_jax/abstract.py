"""Arrays that are only shapes, and jitted programs with the arguments they are called with.

What a run calls can be lowered without a parameter in memory, for devices that are not there:
constructors that are given `jax.ShapeDtypeStruct`s hold shapes with shardings instead of arrays,
and list their programs with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.experimental.layout import Format


class Program(NamedTuple):
    """A jitted function with the arguments of one call.

    Attributes:
        key: what the program does, with the sizes that tell it from its siblings: a frozen
            dataclass of the room that calls it, whose `str` is the name that people read.
        jitted: of `jax.jit`.
        arguments: positional; arrays, shapes or numbers.
        settings: static arguments, by name.
        tokens: positions that pass a model in one call, padding included; 0 for a program that
            runs none.
    """

    key: Any
    jitted: Any
    arguments: tuple[Any, ...]
    settings: Mapping[str, Any] = {}
    tokens: int = 0

    @property
    def name(self) -> str:
        """The key as people read it."""
        return str(self.key)

    def lower(self) -> jax.stages.Lowered:
        """The program as the compiler gets it; nothing is computed."""
        return self.jitted.lower(*self.arguments, **self.settings)


def is_abstract(tree: Any) -> bool:
    """Whether a tree holds shapes instead of arrays."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def without_arrays(model: nnx.Module) -> nnx.Module:
    """The module with shapes for parameters: it says how to compute, and holds no memory."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.eval_shape(lambda: state))


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes of a tree of arrays or shapes, with shardings.

    Args:
        tree: anything with shape and dtype.
        shardings: one for all leaves, with a layout or without, or a tree of them.
    """

    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(shardings, (jax.sharding.Sharding, Format)):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)
