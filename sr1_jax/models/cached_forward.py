"""The decoder over a KV cache, in the layout of rollouts (`models.serving`).

The same function as `models.decoder.Trunk`, written for activations in columns: x_DN holds N =
B · T tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models.attention import attend_over_cache, one_query_attention
from sr1_jax.models.cache_rows import own_parts, spread_queries, to_rows
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.norm import rms_norm
from sr1_jax.models.rotary import rope_angles, rotate
from sr1_jax.models.serving import Int8, KVCache, ServingLayer, ServingParams
from sr1_jax.sharding import current_platform, for_own_heads


def forward_cached(
    config: DecoderConfig,
    params: ServingParams,
    ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    cache: KVCache,
    rows_B: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "D B T"], KVCache]:
    """Hidden states of new tokens that also see what `cache` holds; appends to the cache.

    Args:
        config: of the decoder.
        params: of `serving_params`.
        ids_BT: new tokens.
        positions_BT: where in its sequence each stands. A position outside the cache is not
            written: that is how padding and idle slots are kept out.
        cache: keys and values so far; position x of a slot must hold token x.
        rows_B: the slot of each row; None when row b is slot b. A row past the last slot is
            computed and not written.

    Returns:
        hidden_DBT before the final norm, and the updated cache.
    """
    batch, length = ids_BT.shape
    cos, sin = rope_angles(positions_BT, config.head_dim, config.rope_theta, config.rope_scaling)
    cos_E2N, sin_E2N = (x.reshape(batch * length, -1).T for x in (cos, sin))
    one_query = rows_B is None and length == 1
    rows_B = jnp.arange(batch) if rows_B is None else rows_B
    # As an index a negative position would count from the end.
    write_at_BT = jnp.where(positions_BT < 0, cache.positions, positions_BT)
    x_DN = params.embed_VD[ids_BT.reshape(-1)].astype(config.dtype).T
    append = for_own_heads(
        functools.partial(_append_and_attend, one_query=one_query),
        heads=(1, 2, 2, 1, 1, None, None, None),
        of_results=(1, 1, 1),
    )
    k_cache, v_cache = [], []
    for layer, k_SKNEC, v_SKXE in zip(params.layers, *cache, strict=True):
        q_KGEN, k_KEN, v_KEN = _project(config, layer, x_DN, cos_E2N, sin_E2N)
        k_BTKE, v_BTKE = (
            x.reshape(*x.shape[:2], batch, length).transpose(2, 3, 0, 1) for x in (k_KEN, v_KEN)
        )
        q_KGEBT = q_KGEN.reshape(*q_KGEN.shape[:3], batch, length)
        q_BKGTE = q_KGEBT.transpose(3, 0, 1, 4, 2)
        mixed_BKGTE, k_SKNEC, v_SKXE = append(
            q_BKGTE, k_BTKE, v_BTKE, k_SKNEC, v_SKXE, rows_B, write_at_BT, positions_BT
        )
        k_cache.append(k_SKNEC)
        v_cache.append(v_SKXE)
        mixed_KGEN = mixed_BKGTE.transpose(1, 2, 4, 0, 3).reshape(q_KGEN.shape)
        x_DN += _product(config, layer.o_DKGE, mixed_KGEN)
        gate_FN, up_FN = _product(
            config,
            layer.gate_up_2FD,
            rms_norm(x_DN, layer.ff_norm_D, config.norm_eps, axis=-2),
        )
        x_DN += _product(config, layer.down_DF, jax.nn.silu(gate_FN) * up_FN)
    return x_DN.reshape(-1, batch, length), KVCache(tuple(k_cache), tuple(v_cache))


def next_token_logits(
    config: DecoderConfig, params: ServingParams, hidden_DB: Float[Array, "D B"]
) -> Float[Array, "V B"]:
    """float32 logits from hidden states before the final norm."""
    hidden_DB = rms_norm(hidden_DB, params.norm_D, config.norm_eps, axis=-2)
    weight_VD = params.embed_VD if params.head_VD is None else params.head_VD
    return _product(config, weight_VD, hidden_DB).astype(jnp.float32)


def _project(config: DecoderConfig, layer: ServingLayer, x_DN, cos_E2N, sin_E2N):
    """Rotated queries and keys, and values: q_KGEN, k_KEN, v_KEN."""
    qkv_KJEN = _product(
        config, layer.qkv_KJED, rms_norm(x_DN, layer.attention_norm_D, config.norm_eps, axis=-2)
    )
    if layer.qkv_bias_KJE is not None:
        qkv_KJEN += layer.qkv_bias_KJE.astype(config.dtype)[..., None]
    q_KGEN, k_KEN, v_KEN = qkv_KJEN[:, :-2], qkv_KJEN[:, -2], qkv_KJEN[:, -1]
    if layer.q_norm_E is not None:
        q_KGEN = rms_norm(q_KGEN, layer.q_norm_E, config.norm_eps, axis=-2)
        k_KEN = rms_norm(k_KEN, layer.k_norm_E, config.norm_eps, axis=-2)
    cos_1E2N, sin_1E2N = cos_E2N[None], sin_E2N[None]
    q_KGEN = rotate(q_KGEN, cos_1E2N[None], sin_1E2N[None], axis=-2)
    return q_KGEN, rotate(k_KEN, cos_1E2N, sin_1E2N, axis=-2), v_KEN


def _product(config: DecoderConfig, weight, x):
    """A weight [outputs…, inputs…] times columns [inputs…, N]: [outputs…, N]."""
    values = weight.values if isinstance(weight, Int8) else weight
    inputs = x.ndim - 1
    contracted = tuple(range(values.ndim - inputs, values.ndim)), tuple(range(inputs))
    dtype = x.dtype if config.matmul_dtype == "same" else jnp.bfloat16
    product = jax.lax.dot_general(
        values.astype(dtype), x.astype(dtype), (contracted, ((), ())),
        preferred_element_type=x.dtype,
    )  # fmt: skip
    if isinstance(weight, Int8):
        # One scale an output, so it can wait until after the product.
        scale = weight.scale.reshape(*values.shape[: values.ndim - inputs], 1)
        product = (product * scale).astype(x.dtype)
    return product


def _append_and_attend(
    q_BKGTE, k_BTKE, v_BTKE, k_SKNEC, v_SKXE, rows_B, write_at_BT, positions_BT, *, one_query
):
    """What new tokens see, and the cache with their keys and values; of some heads or all."""
    heads, size = k_BTKE.shape[2:]
    rows, width = v_SKXE.shape[1], v_SKXE.shape[3]
    in_rows = width != size
    if in_rows:
        k_BTKE, v_BTKE = (to_rows(x, rows, width) for x in (k_BTKE, v_BTKE))
        q_BKGTE = spread_queries(q_BKGTE, rows, width)
    k_SKNEC, v_SKXE = _write(k_SKNEC, v_SKXE, k_BTKE, v_BTKE, rows_B, write_at_BT)
    if one_query:
        mixed_BKGE = one_query_attention(
            q_BKGTE[:, :, :, 0], k_SKNEC, v_SKXE, positions_BT[:, 0], head_dim=size
        )
        mixed_BKGTE = mixed_BKGE[:, :, :, None]
    else:
        mixed_BKGTE = attend_over_cache(
            q_BKGTE, k_SKNEC, v_SKXE, rows_B, positions_BT, head_dim=size
        )
    if in_rows:
        mixed_BKGTE = own_parts(mixed_BKGTE, heads, size)
    return mixed_BKGTE, k_SKNEC, v_SKXE


def _write(k_SKNEC, v_SKXE, k_BTKE, v_BTKE, rows_B, positions_BT):
    """Stores new keys and values; rows and positions outside the cache are dropped."""
    rows, heads, at, block = rows_B[:, None], slice(None), positions_BT, k_SKNEC.shape[-1]
    if current_platform() == "tpu":
        # One head a write: what is written lies in one piece. For all heads of a token at once the
        # compiler would lay them side by side, and copy the cache there and back in every step.
        rows, heads, at = rows[..., None], jnp.arange(k_BTKE.shape[2]), at[..., None]
    k_SKNEC = k_SKNEC.at[rows, heads, at // block, :, at % block].set(k_BTKE, mode="drop")
    return k_SKNEC, v_SKXE.at[rows, heads, at].set(v_BTKE, mode="drop")
