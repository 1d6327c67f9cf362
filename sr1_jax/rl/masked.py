"""Arithmetic over the valid tokens of a batch.

A mask may have any dtype; a token is valid where it is nonzero. What an array holds at the other
tokens never matters: inf and nan there reach neither a value nor a gradient.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num

NumOrBool = Num[Array, "*shape"] | Bool[Array, "*shape"]


def require_same_shape(**arrays: ArrayLike) -> None:
    """Refuse arrays that would only combine by broadcasting. Shapes are static: works under jit.

    Raises:
        ValueError: the shapes differ; the message lists them by name.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"these arrays must have the same shape: {listed}")


def masked_input(x: NumOrBool, mask: NumOrBool) -> Float[Array, "*shape"]:
    """`x` as float32 where the mask is nonzero, 0 elsewhere.

    Applied to inputs, not to results: a gradient through the zero is zero, whereas a result masked
    afterwards multiplies that zero by the derivative at the garbage, and 0 * inf is nan.
    """
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.where(jnp.asarray(mask) != 0, x, 0.0)


def masked_mean(x_BT: NumOrBool, mask_BT: NumOrBool) -> Float[Array, ""]:
    """Mean over the valid tokens of all trajectories; 0 if there are none. A bool x gives a share.

    Args:
        x_BT: array of any shape, usually [B, T].
        mask_BT: same shape, nonzero on valid tokens.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(x=x_BT, mask=mask_BT)
    count = jnp.count_nonzero(jnp.asarray(mask_BT))
    return jnp.sum(masked_input(x_BT, mask_BT)) / jnp.maximum(count, 1).astype(jnp.float32)
