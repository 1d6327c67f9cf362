"""The layout in which rollouts keep a decoder: parameters, and the KV cache.

Training keeps layers stacked and scanned, and weights split over `fsdp`. Decoding reads every
weight for each token, so it wants them where they are used: one array a layer, nothing to slice,
and no axis but `tensor` split. `serve` makes that layout from the trained parameters, in bfloat16
or int8 if asked.

Weights stand outputs first, and activations are columns: a CPU runs products with few columns
faster than the same with few rows. What reads the same input is one weight: query, key
and value heads of a group, gate and up. Keys are cached in blocks of positions, each transposed
(`benchmarks/decoding.py` measures all of this).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from sr1_jax.models.cache_rows import Rows, rows_of_heads
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.layer_weights import layer_weights
from sr1_jax.sharding import CACHE_AXES, named, serving_shardings

WEIGHTS = ("same", "bfloat16", "int8")
_CPU_BLOCK, _BLOCK = 32, 128  # positions; a TPU's registers hold 128 in a row


class KVCache(NamedTuple):
    """Keys and values of every slot, X = N · C positions a slot, one array a layer.

    Attributes:
        k_SKNEC: keys, in N blocks of C positions, positions last.
        v_SKXE: values.

    On TPUs several small heads may share a row: K is then the rows of a position and E the numbers
    of a row (`cache_rows`).
    """

    k_SKNEC: tuple[jax.Array, ...]
    v_SKXE: tuple[jax.Array, ...]

    @classmethod
    def empty(
        cls,
        config: DecoderConfig,
        slots: int,
        positions: int,
        block: int = _CPU_BLOCK,
        rows: Rows | None = None,
    ) -> KVCache:
        """For at least `positions` positions: whole blocks; without `rows`, a head a row."""
        blocks = -(-positions // block)
        together, width = rows or (1, config.head_dim)
        k_SKNEC = (slots, config.kv_heads // together, blocks, width, block)
        v_SKXE = (slots, config.kv_heads // together, blocks * block, width)
        return cls(
            tuple(jnp.zeros(k_SKNEC, config.dtype) for _ in range(config.layers)),
            tuple(jnp.zeros(v_SKXE, config.dtype) for _ in range(config.layers)),
        )

    @property
    def positions(self) -> int:
        return self.v_SKXE[0].shape[2]

    @property
    def slots(self) -> int:
        return self.v_SKXE[0].shape[0]

    @property
    def block(self) -> int:
        return self.k_SKNEC[0].shape[-1]


def cache_shape(config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """`block` and `rows` of `KVCache.empty` for the devices of a mesh."""
    if mesh.devices.flat[0].platform == "cpu":
        return {"block": _CPU_BLOCK, "rows": None}
    # Heads of one device share a row, so that rows can be split over `tensor` as heads are.
    heads = config.kv_heads // mesh.shape["tensor"]
    return {"block": _BLOCK, "rows": rows_of_heads(heads, config.head_dim)}


def cache_placement(mesh: Mesh) -> KVCache:
    """Where and in which order of axes the arrays of a cache lie; a prefix of the cache's tree.

    Slots are split over the batch axes, heads over `tensor`. A TPU wants the keys of a position
    together and would copy the cache in every call if they came in another order.
    """
    where = named(mesh, *CACHE_AXES)
    if mesh.devices.flat[0].platform == "cpu":
        return KVCache(where, where)
    return KVCache(Format(Layout((0, 1, 2, 4, 3)), where), where)


def empty_cache(config: DecoderConfig, slots: int, positions: int, mesh: Mesh) -> KVCache:
    """An empty cache, made in place."""
    return _empty_cache_program(config, slots, positions, mesh)()


@functools.cache
def _empty_cache_program(config: DecoderConfig, slots: int, positions: int, mesh: Mesh):
    return jax.jit(
        functools.partial(KVCache.empty, config, slots, positions, **cache_shape(config, mesh)),
        out_shardings=cache_placement(mesh),
    )


def cache_bytes(
    config: DecoderConfig,
    slots: int,
    positions: int,
    block: int = _CPU_BLOCK,
    rows: Rows | None = None,
) -> int:
    """2 · layers · slots · positions · kv_heads · head_dim · bytes of a number, with positions
    rounded up to blocks and heads to rows."""
    positions = -(-positions // block) * block
    together, width = rows or (1, config.head_dim)
    numbers = 2 * config.layers * slots * positions * (config.kv_heads // together) * width
    return numbers * jnp.dtype(config.dtype).itemsize


class Int8(NamedTuple):
    """A weight as int8 with one float32 scale for each output."""

    values: jax.Array
    scale: jax.Array


class ServingLayer(NamedTuple):
    """Parameters of one layer; J = G + 2: the G query heads of a group, its key, its value.

    Attributes:
        attention_norm_D, ff_norm_D: scales of the norms.
        qkv_KJED, qkv_bias_KJE: projections; the bias is None without one.
        q_norm_E, k_norm_E: scales of the head norms, or None.
        o_DKGE: output projection.
        gate_up_2FD, down_DF: feed-forward.
    """

    attention_norm_D: jax.Array
    qkv_KJED: Any
    qkv_bias_KJE: jax.Array | None
    q_norm_E: jax.Array | None
    k_norm_E: jax.Array | None
    o_DKGE: Any
    ff_norm_D: jax.Array
    gate_up_2FD: Any
    down_DF: Any


class ServingParams(NamedTuple):
    """Parameters of a decoder; `head_VD` is None with tied embeddings, but where products round."""

    embed_VD: jax.Array
    norm_D: jax.Array
    head_VD: jax.Array | None
    layers: tuple[ServingLayer, ...]


def quantise(kernel: jax.Array, input_axes: tuple[int, ...]) -> Int8:
    """Symmetric rounding to 8 bits, one scale for each output channel (Jacob et al. 2018,
    section 2, with a zero point of 0)."""
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=input_axes, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return Int8(jnp.round(kernel / scale).astype(jnp.int8), scale)


def _grouped(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """[..., H, E], [..., K, E], [..., K, E] -> [..., K, G + 2, E]."""
    *outer, kv_heads, size = k.shape
    q = q.reshape(*outer, kv_heads, -1, size)
    return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=-2)


def _serving_layer(config: DecoderConfig, weights: str, params: Any) -> ServingLayer:
    layer = layer_weights(params)

    def small(array):
        return array if array is None or weights == "same" else array.astype(jnp.bfloat16)

    def kernel(array, inputs):
        if weights == "int8":
            return quantise(array, inputs)
        # What products round in any case is kept rounded.
        return array.astype(jnp.bfloat16) if config.matmul_dtype == "bfloat16" else small(array)

    bias_KJE = None
    if config.qkv_bias:
        bias_KJE = small(_grouped(layer.q_bias_HE, layer.k_bias_KE, layer.v_bias_KE))
    qkv_DKJE = _grouped(layer.q_DHE, layer.k_DKE, layer.v_DKE)
    o_KGED = layer.o_HED.reshape(config.kv_heads, -1, *layer.o_HED.shape[1:])
    gate_up_2DF = jnp.stack([layer.gate_DF, layer.up_DF])
    return ServingLayer(
        attention_norm_D=small(layer.attention_norm_D),
        qkv_KJED=kernel(jnp.moveaxis(qkv_DKJE, 0, -1), (3,)),
        qkv_bias_KJE=bias_KJE,
        q_norm_E=small(layer.q_norm_E),
        k_norm_E=small(layer.k_norm_E),
        o_DKGE=kernel(jnp.moveaxis(o_KGED, -1, 0), (1, 2, 3)),
        ff_norm_D=small(layer.ff_norm_D),
        gate_up_2FD=kernel(gate_up_2DF.swapaxes(1, 2), (2,)),
        down_DF=kernel(layer.down_FD.T, (1,)),
    )


def _serving_ends(config: DecoderConfig, weights: str, params: Any) -> ServingParams:
    """What is not in a layer."""

    def small(variable):
        array = variable.get_value()
        return array if weights == "same" else array.astype(jnp.bfloat16)

    return ServingParams(
        embed_VD=small(params["trunk"]["embed"]["embedding"]),
        norm_D=small(params["trunk"]["norm"]["scale"]),
        head_VD=_serving_head(config, params, small),
        layers=(),
    )


def _serving_head(config: DecoderConfig, params: Any, small: Any) -> jax.Array | None:
    rounded = config.matmul_dtype == "bfloat16"
    if config.tied_embeddings:
        # Rows that are looked up are not rounded; those that are multiplied are.
        embedding = params["trunk"]["embed"]["embedding"].get_value()
        return embedding.astype(jnp.bfloat16) if rounded else None
    head_VD = small(params["head"]["kernel"]).T
    return head_VD.astype(jnp.bfloat16) if rounded else head_VD


def serving_params(
    config: DecoderConfig, params: nnx.State, weights: str = "same"
) -> ServingParams:
    """The parameters of a decoder in the layout of rollouts; traceable.

    Args:
        config: of the decoder.
        params: its parameters.
        weights: "same", "bfloat16", or "int8": weights of the layers in 8 bits, the rest in
            bfloat16.
    """
    stack = params["trunk"]["layers"]
    layers = (
        _serving_layer(config, weights, jax.tree.map(lambda x, layer=layer: x[layer], stack))
        for layer in range(config.layers)
    )
    return _serving_ends(config, weights, params)._replace(layers=tuple(layers))


@functools.partial(jax.jit, static_argnames=("config", "mesh", "weights"))
def serve_layer(
    stack: nnx.State, layer: jax.Array, *, config: DecoderConfig, mesh: Mesh, weights: str
) -> ServingLayer:
    """Moves layer number `layer`, int32 [], of the stacked layers."""
    params = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), stack)
    served = _serving_layer(config, weights, params)
    return jax.lax.with_sharding_constraint(served, serving_shardings(served, mesh))


@functools.partial(jax.jit, static_argnames=("config", "mesh", "weights"))
def serve_ends(
    params: nnx.State, *, config: DecoderConfig, mesh: Mesh, weights: str
) -> ServingParams:
    """Moves embedding, last norm and head."""
    served = _serving_ends(config, weights, params)
    return jax.lax.with_sharding_constraint(served, serving_shardings(served, mesh))


def serve(
    params: nnx.State, *, config: DecoderConfig, mesh: Mesh, weights: str = "same"
) -> ServingParams:
    """Moves trained parameters into the layout of rollouts.

    One compiled program moves a layer at a time: in a program that moves all, a TPU's compiler
    collects the weights of all before it lays out the first, and holds them twice.

    Args:
        params: of a decoder, placed as in training.
        config: of the decoder.
        mesh: the device mesh.
        weights: see `serving_params`.

    Raises:
        ValueError: an axis does not divide over the mesh.
    """
    how = {"config": config, "mesh": mesh, "weights": weights}
    stack = params["trunk"]["layers"]
    layers = (serve_layer(stack, jnp.int32(layer), **how) for layer in range(config.layers))
    return serve_ends(params, **how)._replace(layers=tuple(layers))
