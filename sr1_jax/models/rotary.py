"""Rotary positions, for training and rollouts alike (Su et al. 2021)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, *, axis: int) -> jax.Array:
    """Rotates each head; pair i is (x[i], x[i + E/2]), the Hugging Face convention.

    Args:
        x: queries or keys, any float dtype.
        cos, sin: of `rope_angles`, of as many axes as `x`: E/2 long along `axis`, and where they
            are the same for all of an axis, 1.
        axis: that of the E numbers of a head.

    Returns:
        An array like `x`; computed in float32.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=axis).astype(x.dtype)
