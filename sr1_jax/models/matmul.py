"""Matrix products that multiply in bfloat16 and sum in float32, on float32 activations.

TPUs multiply float32 matrices so by default. CPUs with AVX512-BF16 or AMX do it in half the time of
float32 products or less (`benchmarks/matmul.py`), where activations in bfloat16 would gain nothing:
what is not a product takes longer in them, and so do products that are rounded to them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# What products multiply in: as activations are, or bfloat16.
MATMUL_DTYPES = ("same", "bfloat16")


@jax.custom_vjp
def bfloat16_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a · b, both rounded to bfloat16, summed in float32; the products of the gradient alike.

    Args:
        a: [..., M, K], float.
        b: [..., K, N], float.

    Returns:
        [..., M, N], float32.
    """
    return _matmul(a, b)


def _matmul(a, b, over=(-1, -2)):
    """Contracted over one of the last two axes each."""
    a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    outer = tuple(range(a.ndim - 2))
    contracted = tuple((x.ndim + axis,) for x, axis in zip((a, b), over))
    return jax.lax.dot_general(
        a, b, (contracted, (outer, outer)), preferred_element_type=jnp.float32
    )


def _forward(a, b):
    return _matmul(a, b), (a, b)


def _backward(kept, d_out):
    a, b = kept
    d_a = _matmul(d_out, b, over=(-1, -1))
    d_b = _matmul(a, d_out, over=(-2, -2))
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


bfloat16_matmul.defvjp(_forward, _backward)


def matmul_of(dtype: str):
    """The product of matrices, or stacks of them, for one of `MATMUL_DTYPES`; of "same" the result
    is in float32."""
    if dtype == "bfloat16":
        return bfloat16_matmul

    def same(a, b):
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    return same


def bfloat16_rows(x: jax.Array, kernel_KN: jax.Array) -> jax.Array:
    """`bfloat16_matmul` of vectors [..., K] with one matrix: [..., N]."""
    rows = bfloat16_matmul(x.reshape(-1, x.shape[-1]), kernel_KN)
    return rows.reshape(*x.shape[:-1], -1)


def bfloat16_dot_general(x, kernel, dimension_numbers, precision=None, **_):
    """`bfloat16_matmul` as linear layers call products: the last axes of x with the first of the
    kernel."""
    (x_axes, kernel_axes), batch_axes = dimension_numbers
    count = len(x_axes)
    if (
        batch_axes != ((), ())
        or tuple(x_axes) != tuple(range(x.ndim - count, x.ndim))
        or tuple(kernel_axes) != tuple(range(count))
    ):
        raise NotImplementedError(f"products over {dimension_numbers} of {x.shape}, {kernel.shape}")
    outer, inputs = x.shape[: x.ndim - count], math.prod(x.shape[x.ndim - count :])
    out = bfloat16_rows(x.reshape(*outer, inputs), kernel.reshape(inputs, -1))
    return out.reshape(*outer, *kernel.shape[count:])
