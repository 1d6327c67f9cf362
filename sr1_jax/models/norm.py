"""The root-mean-square norm, for training and rollouts alike (Zhang and Sennrich 2019)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


def rms_norm(x: jax.Array, scale_D: jax.Array, epsilon: float, *, axis: int = -1) -> jax.Array:
    """x / sqrt(mean(x²) + epsilon) · scale, over one axis (equation 4, with epsilon).

    Args:
        x: activations, any float dtype.
        scale_D: of the numbers along `axis`; taken in the dtype of `x`, as every weight is.
        epsilon: keeps zeros finite.
        axis: that is normalised, counted from the last: -1, -2, …

    Returns:
        An array like `x`; computed in float32.
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axis, keepdims=True) + epsilon)
    ones_after = (1,) * (-1 - axis)
    scale = scale_D.astype(x.dtype).reshape((1,) * (x.ndim + axis) + (-1, *ones_after))
    return (x32 * (inverse * scale)).astype(x.dtype)


class RMSNorm(nnx.RMSNorm):
    """`rms_norm` over the last axis with a scale that is trained."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x.astype(self.dtype), self.scale[...], self.epsilon)
