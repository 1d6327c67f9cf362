"""The one place where attention kernels are chosen.

Everything that attends goes through `attention`. It is `jax.nn.dot_product_attention`, but for
causal attention over whole sequences on a CPU, where XLA runs that twice as slowly as the
same products written as plain batched matrices (`benchmarks/attention.py` measures both). A
Pallas kernel for TPUs has its place here.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BXKE: Float[Array, "B X K E"],
    v_BXKE: Float[Array, "B X K E"],
) -> Float[Array, "B T H E"]:
    """Scaled dot-product attention with grouped key/value heads (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHE: queries, any float dtype.
        k_BXKE: keys; H must be a multiple of K (grouped-query attention, Ainslie et al. 2023).
        v_BXKE: values.

    Returns:
        Weighted values in the dtype of the queries; the softmax itself runs in float32.
    """
    if jax.default_backend() == "cpu":
        return causal_by_matmul(q_BTHE, k_BXKE, v_BXKE)
    return jax.nn.dot_product_attention(q_BTHE, k_BXKE, v_BXKE, is_causal=True)


def causal_by_matmul(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
) -> Float[Array, "B T H E"]:
    """Causal attention as two batched matrix products, one matrix a key/value head."""
    batch, length, heads, size = q_BTHE.shape
    kv_heads = k_BTKE.shape[2]
    group = heads // kv_heads
    matrices = batch * kv_heads
    q = (q_BTHE * size**-0.5).transpose(0, 2, 1, 3).reshape(matrices, group * length, size)
    k = k_BTKE.transpose(0, 2, 3, 1).reshape(matrices, size, length)
    v = v_BTKE.transpose(0, 2, 1, 3).reshape(matrices, length, size)
    visible_TT = jnp.tril(jnp.ones((length, length), bool))
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(matrices, group, length, length)
    scores = jnp.where(visible_TT, scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Divided after the second product: E numbers a query instead of T.
    sums = weights.sum(axis=-1)[..., None]
    mixed = jnp.matmul(
        weights.reshape(matrices, group * length, length).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    out = mixed.reshape(matrices, group, length, size) / sums
    return out.reshape(batch, heads, length, size).transpose(0, 2, 1, 3).astype(q_BTHE.dtype)


def cached_attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BKEX: Float[Array, "B K E X"],
    v_BKXE: Float[Array, "B K X E"],
    positions_BT: Int[Array, "B T"],
) -> Float[Array, "B T H E"]:
    """Attention of new tokens over a cache in which key x stands at position x.

    Two batched matrix products, one matrix a key/value head; query t sees positions up to its
    own.

    Args:
        q_BTHE: queries, any float dtype.
        k_BKEX: keys, positions last; H must be a multiple of K.
        v_BKXE: values.
        positions_BT: of the queries.

    Returns:
        Weighted values in the dtype of the queries; the softmax itself runs in float32.
    """
    batch, length, heads, size = q_BTHE.shape
    kv_heads, positions = k_BKEX.shape[1], k_BKEX.shape[-1]
    group, matrices = heads // kv_heads, batch * kv_heads
    q = (q_BTHE * size**-0.5).reshape(batch, length, kv_heads, group, size)
    q = q.transpose(0, 2, 3, 1, 4).reshape(matrices, group * length, size)
    k, v = (x.reshape(matrices, *x.shape[2:]) for x in (k_BKEX, v_BKXE))
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads * group, length, positions)
    visible_BTX = jnp.arange(positions)[None, None] <= positions_BT[..., None]
    # A finite number: a row that sees nothing is idle, and must not turn into NaN.
    weights = jax.nn.softmax(jnp.where(visible_BTX[:, None], scores, -1e30), axis=-1)
    weights = weights.reshape(matrices, group * length, positions).astype(v.dtype)
    out = jnp.matmul(weights, v, preferred_element_type=jnp.float32)
    out = out.reshape(batch, heads, length, size).transpose(0, 2, 1, 3)
    return out.astype(q_BTHE.dtype)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered for contexts beyond the original one.

    Attributes:
        kind: "linear" (Chen et al. 2023: all frequencies by `factor`) or "llama3" (Llama 3.1:
            only those whose wave is longer than a share of the original context).
        factor: by which frequencies are divided.
        low_freq_factor, high_freq_factor: of "llama3": waves longer than original_positions /
            low_freq_factor are divided, those shorter than original_positions /
            high_freq_factor left alone, those between in between.
        original_positions: of "llama3".
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope type {self.kind!r} is not supported; linear and llama3 are.")
        if self.factor < 1:
            raise ValueError(f"rope factor {self.factor} must be at least 1.")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope low_freq_factor {self.low_freq_factor} must be positive and less than "
                f"high_freq_factor {self.high_freq_factor}."
            )


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, " E2"]:
    """Radians a position of each frequency pair (Su et al. 2021, section 3.2.2), float32.

    Args:
        head_dim: E; there are E / 2 pairs.
        theta: base of the geometric series of frequencies.
        scaling: see `RopeScaling`.
    """
    # In float32 from the start, as models are trained: far out, every bit of it shows.
    exponent_E2 = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency_E2 = np.float32(1) / np.float32(theta) ** exponent_E2
    if scaling is None:
        return frequency_E2
    if scaling.kind == "linear":
        return (frequency_E2 / scaling.factor).astype(np.float32)
    # How often a wave fits into the original context decides how much of it is kept.
    turns_E2 = scaling.original_positions * frequency_E2 / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_E2 = np.clip((turns_E2 - low) / (high - low), 0, 1)
    scaled_E2 = kept_E2 * frequency_E2 + (1 - kept_E2) * frequency_E2 / scaling.factor
    return scaled_E2.astype(np.float32)


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Float[Array, "B T E2"], Float[Array, "B T E2"]]:
    """Cosine and sine of the rotary angles, float32.

    Args:
        positions_BT: int32 token positions.
        head_dim, theta, scaling: see `rope_frequencies`.
    """
    frequency_E2 = rope_frequencies(head_dim, theta, scaling)
    angles_BTE2 = positions_BT[..., None].astype(jnp.float32) * frequency_E2[None, None]
    return jnp.cos(angles_BTE2), jnp.sin(angles_BTE2)


def apply_rope(
    x_BTNE: Float[Array, "B T N E"],
    cos_BTE2: Float[Array, "B T E2"],
    sin_BTE2: Float[Array, "B T E2"],
) -> Float[Array, "B T N E"]:
    """Rotates each head; pair i is (x[i], x[i + E/2]), the Hugging Face convention."""
    cos_BT1E2, sin_BT1E2 = cos_BTE2[:, :, None], sin_BTE2[:, :, None]
    first, second = jnp.split(x_BTNE.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cos_BT1E2 - second * sin_BT1E2, second * cos_BT1E2 + first * sin_BT1E2], axis=-1
    )
    return rotated.astype(x_BTNE.dtype)
