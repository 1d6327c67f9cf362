"""A fingerprint of a policy's parameters, wherever they lie and however they are sharded."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Odd, so that no place is lost modulo 2**32: what a step along each axis adds.
_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)


def params_fingerprint(params: nnx.State) -> str:
    """The same for parameters that are equal bit for bit, and hardly ever for others.

    A sum over each array of hashes of its numbers and their places, modulo 2**32. Whole numbers add
    up to the same in any order: the mesh does not count. All processes must call it.

    Args:
        params: arrays of at most five axes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = jax.jit(lambda arrays: [_hashed_sum(x) for x in arrays])([x for _, x in leaves])
    digest = hashlib.sha256()
    for (path, leaf), total in zip(leaves, sums):
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape} {int(np.asarray(total))}\n".encode())
    return digest.hexdigest()


def _hashed_sum(x: jax.Array) -> jax.Array:
    """uint32: the sum of hashes of value and place, by the finalizer of MurmurHash3."""
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    hashed = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    for axis in range(x.ndim):
        places = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        hashed = hashed + (places + 1) * np.uint32(_PRIMES[axis])
    hashed = (hashed ^ (hashed >> 16)) * np.uint32(0x85EBCA6B)
    hashed = (hashed ^ (hashed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(hashed ^ (hashed >> 16), dtype=jnp.uint32)
