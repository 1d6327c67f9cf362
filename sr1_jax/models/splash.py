"""Causal attention over whole sequences by JAX's Pallas kernel for TPUs, splash attention.

It never holds [T, T] scores, and skips the blocks above the diagonal, forward and backward.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import MultiHeadMask
from jaxtyping import Array, Float, Int

# What `jax.checkpoint` policies call the outputs and the log-sums that the backward pass needs.
CHECKPOINT_NAME = "attention"

_LANES = 128  # blocks are multiples of it
_BLOCKS = (512, 384, 256)


def block_of(length: int) -> int:
    """Tokens of a block for sequences of `length` tokens, which are padded to a multiple of it.

    Short sequences are one block. Longer ones take the size of least padding, and of those the
    largest: 512 x 512 scores fill the matrix unit, and fit the 16 MiB of vector memory that
    a kernel may use on a v5e as on a v5p.
    """
    if length <= _BLOCKS[0]:
        return -(-length // _LANES) * _LANES
    return min(_BLOCKS, key=lambda block: -(-length // block) * block)


def splash_attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    sequence_BT: Int[Array, "B T"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Causal scaled dot-product attention on one device; on several, to be called in a shard_map.

    Args:
        q_BTHE: queries, any float dtype.
        k_BTKE: keys; H must be a multiple of K.
        v_BTKE: values.
        sequence_BT: of packed rows, the sequence of each token, not negative; none sees another's.
        interpret: runs the kernel step by step on any platform, for tests.

    Returns:
        Weighted values in the dtype of the queries; products accumulate and the softmax runs in
        float32.
    """
    length, heads, size = q_BTHE.shape[1:]
    block = block_of(length)
    padded = -(-length // block) * block

    def by_head(x_BTNE):
        # What is padded stands behind every query that is kept, so no mask is needed.
        padding = ((0, 0), (0, padded - length), (0, 0), (0, 0))
        return jnp.pad(x_BTNE, padding).transpose(0, 2, 1, 3)

    kernel = pallas.make_splash_mha_single_device(
        MultiHeadMask([pallas.CausalMask((padded, padded)) for _ in range(heads)]),
        block_sizes=pallas.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=CHECKPOINT_NAME,
        interpret=interpret,
    )
    # The kernel does not scale; in float32 the product rounds once.
    q_BTHE = (q_BTHE.astype(jnp.float32) * size**-0.5).astype(q_BTHE.dtype)
    heads_first = (by_head(q_BTHE), by_head(k_BTKE), by_head(v_BTKE))
    if sequence_BT is None:
        out_BHTE = jax.vmap(kernel)(*heads_first)
    else:
        ids_BT = jnp.pad(sequence_BT, ((0, 0), (0, padded - length)), constant_values=-1)
        out_BHTE = jax.vmap(kernel)(*heads_first, pallas.SegmentIds(q=ids_BT, kv=ids_BT))
    return out_BHTE[:, :, :length].transpose(0, 2, 1, 3)
