"""Attention of one new token a slot by JAX's Pallas kernel for TPUs, paged attention.

It reads of each slot's cache what is filled, in blocks of up to 512 positions, and nothing of idle
slots; the plain products of `attention.attend_with_one_query` read all that is allocated.

A slot's cache is one piece, so its pages follow each other: the page table is a range, and the
cache is read where it lies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jaxtyping import Array, Float, Int

from sr1_jax.models.cache_rows import LANES

# Positions at a time: copies from main memory start late, so that small ones would wait more than
# they move; what is read beyond the last token is half of it on average.
_POSITIONS = 512


def takes(k_BKNEC: jax.Array) -> bool:
    """Whether the kernel is for caches like this: of bfloat16, to which it rounds, and of rows that
    fill whole registers."""
    return k_BKNEC.dtype == jnp.bfloat16 and k_BKNEC.shape[3] % LANES == 0


def attend_to_filled(
    q_BKGE: Float[Array, "B K G E"],
    k_BKNEC: Float[Array, "B K N E C"],
    v_BKXE: Float[Array, "B K X E"],
    position_B: Int[Array, " B"],
    *,
    head_dim: int,
    cores: int = 1,
) -> Float[Array, "B K G E"]:
    """`attention.attend_with_one_query` on one TPU; on several, to be called in a shard_map.

    Args:
        q_BKGE: queries, any float dtype.
        k_BKNEC: keys in bfloat16, in the order of axes of `serving.cache_placement`.
        v_BKXE: values in bfloat16.
        position_B: of the queries; a slot whose position is outside the cache is idle, and its
            result is 0.
        head_dim: numbers of a head, where several share E (`cache_rows`).
        cores: of the device; two share the slots (v4, v5p).

    Returns:
        Weighted values in the dtype of the queries; the softmax runs in float32.
    """
    batch, kv_heads, blocks, size, block = k_BKNEC.shape
    group, sequences = q_BKGE.shape[2], batch * kv_heads
    # Each head of a slot is a sequence of its own with one head: so nothing changes its place.
    pages = (1, sequences * blocks, block, size)
    k_pages, v_pages = k_BKNEC.swapaxes(3, 4).reshape(pages), v_BKXE.reshape(pages)
    length_B = jnp.where((position_B >= 0) & (position_B < blocks * block), position_B + 1, 0)
    # The kernel does not scale; in float32 the product rounds once.
    q = q_BKGE.astype(jnp.float32) * head_dim**-0.5
    out = paged_attention(
        q.reshape(sequences, group, size),
        k_pages,
        v_pages,
        jnp.repeat(length_B.astype(jnp.int32), kv_heads),
        jnp.arange(sequences * blocks, dtype=jnp.int32).reshape(sequences, blocks),
        pages_per_compute_block=pages_at_a_time(blocks, block),
        megacore_mode="batch" if cores == 2 and sequences % 2 == 0 else None,
    )
    return out.reshape(q_BKGE.shape).astype(q_BKGE.dtype)


def pages_at_a_time(pages: int, page: int) -> int:
    """How many pages the kernel reads together: they hold up to 512 positions, and divide a slot.

    Args:
        pages: of a slot.
        page: positions of one.
    """
    limit = max(1, _POSITIONS // page)
    return next(count for count in range(limit, 0, -1) if pages % count == 0)
