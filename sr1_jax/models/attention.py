"""The one place where attention kernels are chosen.

Everything that attends goes through `attention`; today it is `jax.nn.dot_product_attention`
on every backend, and a Pallas kernel for TPUs has its place here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BXKE: Float[Array, "B X K E"],
    v_BXKE: Float[Array, "B X K E"],
    mask_BTX: Bool[Array, "B T X"] | None = None,
) -> Float[Array, "B T H E"]:
    """Scaled dot-product attention with grouped key/value heads (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHE: queries, any float dtype.
        k_BXKE: keys; H must be a multiple of K (grouped-query attention, Ainslie et al. 2023).
        v_BXKE: values.
        mask_BTX: True where query t may see key x. None means causal over T == X.

    Returns:
        Weighted values in the dtype of the queries; the softmax itself runs in float32.
    """
    mask = None if mask_BTX is None else mask_BTX[:, None]
    return jax.nn.dot_product_attention(
        q_BTHE, k_BXKE, v_BXKE, mask=mask, is_causal=mask_BTX is None
    )


def rope_angles(
    positions_BT: jax.Array, head_dim: int, theta: float
) -> tuple[Float[Array, "B T E2"], Float[Array, "B T E2"]]:
    """Cosine and sine of the rotary angles (Su et al. 2021, section 3.2.2), float32.

    Args:
        positions_BT: int32 token positions.
        head_dim: E; the angles cover E / 2 frequency pairs.
        theta: base of the geometric series of frequencies.
    """
    exponents_E2 = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles_BTE2 = positions_BT[..., None].astype(jnp.float32) / (theta**exponents_E2)[None, None]
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
