"""The decoder as rollouts run it: laid out for decoding, with a KV cache.

Training keeps layers stacked and scanned, and weights split over `fsdp`. Decoding reads every
weight for each token, so it wants them where they are used: one array a layer, nothing to slice,
and no axis but `tensor` split. `serve` makes that layout from the trained parameters in one
jitted program, in bfloat16 or int8 if asked.

Keys are cached transposed, [S, K, E, X]: scores are then batched matrix products that read the
cache where it lies (`benchmarks/decoding.py` measures it).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from sr1_jax.models.attention import cached_attention, rope_angles
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.sharding import CACHE_AXES, named, serving_shardings

WEIGHTS = ("same", "bfloat16", "int8")


class KVCache(NamedTuple):
    """Keys and values of every slot, X positions a slot, one array a layer.

    Attributes:
        k_SKEX: keys, positions last.
        v_SKXE: values.
    """

    k_SKEX: tuple[jax.Array, ...]
    v_SKXE: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, config: DecoderConfig, slots: int, positions: int) -> KVCache:
        k_SKEX = (slots, config.kv_heads, config.head_dim, positions)
        v_SKXE = (slots, config.kv_heads, positions, config.head_dim)
        return cls(
            tuple(jnp.zeros(k_SKEX, config.dtype) for _ in range(config.layers)),
            tuple(jnp.zeros(v_SKXE, config.dtype) for _ in range(config.layers)),
        )

    @property
    def positions(self) -> int:
        return self.v_SKXE[0].shape[2]

    @property
    def slots(self) -> int:
        return self.v_SKXE[0].shape[0]


def empty_cache(config: DecoderConfig, slots: int, positions: int, mesh: Mesh) -> KVCache:
    """An empty cache made in place: slots over the batch axes, heads over `tensor`."""
    return _empty_cache_program(config, slots, positions, mesh)()


@functools.cache
def _empty_cache_program(config: DecoderConfig, slots: int, positions: int, mesh: Mesh):
    return jax.jit(
        functools.partial(KVCache.empty, config, slots, positions),
        out_shardings=named(mesh, *CACHE_AXES),
    )


def cache_bytes(config: DecoderConfig, slots: int, positions: int) -> int:
    """2 · layers · slots · positions · kv_heads · head_dim · bytes of a number."""
    numbers = 2 * config.layers * slots * positions * config.kv_heads * config.head_dim
    return numbers * jnp.dtype(config.dtype).itemsize


class ServingParams(NamedTuple):
    """Parameters of a decoder, one tree a layer; `head` is None with tied embeddings."""

    embed: Any
    norm: Any
    head: Any
    layers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ServingGraph:
    """What of a decoder is not parameters: hashable, a static argument of jitted programs."""

    config: DecoderConfig
    embed: nnx.GraphDef
    norm: nnx.GraphDef
    head: nnx.GraphDef | None
    block: nnx.GraphDef

    @classmethod
    def of(cls, model: Decoder) -> ServingGraph:
        trunk = model.trunk
        head = None if model.config.tied_embeddings else nnx.graphdef(model.head)
        parts = (nnx.graphdef(part) for part in (trunk.embed, trunk.norm))
        return cls(model.config, *parts, head, nnx.graphdef(trunk.layers))


class Int8(NamedTuple):
    """A weight as int8 with one float32 scale for each output."""

    values: jax.Array
    scale: jax.Array


def quantise(kernel: jax.Array, input_axes: tuple[int, ...]) -> Int8:
    """Symmetric rounding to 8 bits, one scale for each output channel (Jacob et al. 2018,
    section 2, with a zero point of 0)."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=input_axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)


def _full(tree: Any, dtype: str) -> Any:
    """The tree with int8 weights as numbers of the compute dtype."""

    def one(leaf):
        if isinstance(leaf, Int8):
            return (leaf.values * leaf.scale).astype(dtype)
        return leaf

    return jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, Int8))


def _cast(weights: str, path, array: jax.Array) -> Any:
    if weights == "same":
        return array
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if weights == "int8" and "kernel" in name:
        return quantise(array, (0, 1) if "o/kernel" in name else (0,))
    return array.astype(jnp.bfloat16)


def serving_params(model: Decoder, weights: str = "same") -> ServingParams:
    """The parameters of a decoder in the layout of rollouts; traceable.

    Args:
        model: any decoder.
        weights: "same", "bfloat16", or "int8": kernels of the layers in 8 bits, the rest in
            bfloat16.
    """
    cast = functools.partial(jax.tree_util.tree_map_with_path, functools.partial(_cast, weights))
    outer = functools.partial(
        jax.tree.map, lambda x: x if weights == "same" else x.astype(jnp.bfloat16)
    )
    stack = nnx.state(model.trunk.layers)
    return ServingParams(
        embed=outer(nnx.state(model.trunk.embed)),
        norm=outer(nnx.state(model.trunk.norm)),
        head=None if model.config.tied_embeddings else outer(nnx.state(model.head)),
        layers=tuple(
            cast(jax.tree.map(lambda x, layer=layer: x[layer], stack))
            for layer in range(model.config.layers)
        ),
    )


@functools.partial(jax.jit, static_argnames=("graph", "mesh", "weights"))
def serve(
    params: nnx.State, *, graph: nnx.GraphDef, mesh: Mesh, weights: str = "same"
) -> ServingParams:
    """Moves trained parameters into the layout of rollouts: one jitted program.

    Args:
        params: of a decoder, placed as in training.
        graph: of the decoder.
        mesh: of `sharding.make_mesh`.
        weights: see `serving_params`.

    Raises:
        ValueError: an axis does not divide over the mesh.
    """
    served = serving_params(nnx.merge(graph, params), weights)
    return jax.lax.with_sharding_constraint(served, serving_shardings(served, mesh))


def forward_cached(
    graph: ServingGraph,
    params: ServingParams,
    ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    cache: KVCache,
    rows_B: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Hidden states of new tokens that also see what `cache` holds; appends to the cache.

    Args:
        graph: of the decoder.
        params: of `serving_params`.
        ids_BT: new tokens.
        positions_BT: where in its sequence each stands. A position outside the cache is not
            written: that is how padding and idle slots are kept out.
        cache: keys and values so far; position x of a slot must hold token x.
        rows_B: the slot of each row; None when row b is slot b. A row past the last slot is
            computed and not written.

    Returns:
        hidden_BTD before the final norm, and the updated cache.
    """
    config = graph.config
    cos, sin = rope_angles(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)
    write_rows_B1 = (jnp.arange(ids_BT.shape[0]) if rows_B is None else rows_B)[:, None]
    # As an index a negative position would count from the end.
    write_at_BT = jnp.where(positions_BT < 0, cache.positions, positions_BT)
    x_BTD = nnx.merge(graph.embed, params.embed)(ids_BT)
    k_cache, v_cache = [], []
    for layer, k_SKEX, v_SKXE in zip(params.layers, *cache, strict=True):

        def attend(q_BTHE, k_BTKE, v_BTKE, k_SKEX=k_SKEX, v_SKXE=v_SKXE):
            k_SKEX = k_SKEX.at[write_rows_B1, :, :, write_at_BT].set(k_BTKE, mode="drop")
            v_SKXE = v_SKXE.at[write_rows_B1, :, write_at_BT].set(v_BTKE, mode="drop")
            k_cache.append(k_SKEX)
            v_cache.append(v_SKXE)
            if rows_B is not None:
                k_SKEX, v_SKXE = k_SKEX[rows_B], v_SKXE[rows_B]
            return cached_attention(q_BTHE, k_SKEX, v_SKXE, positions_BT)

        block = nnx.merge(graph.block, _full(layer, config.dtype))
        x_BTD = block(x_BTD, cos, sin, attend)
    return x_BTD, KVCache(tuple(k_cache), tuple(v_cache))


def next_token_logits(
    graph: ServingGraph, params: ServingParams, hidden_BD: Float[Array, "B D"]
) -> Float[Array, "B V"]:
    """float32 logits from hidden states before the final norm."""
    hidden_BD = nnx.merge(graph.norm, params.norm)(hidden_BD)
    if graph.head is None:
        logits_BV = nnx.merge(graph.embed, params.embed).attend(hidden_BD)
    else:
        logits_BV = nnx.merge(graph.head, params.head)(hidden_BD)
    return logits_BV.astype(jnp.float32)
