"""The one place where attention kernels are chosen.

Whole sequences attend through `attention`, which looks at the mesh the model is traced for
(`sharding.compute_on`). Each device attends for its own rows and heads, by

    TPUs          the Pallas kernel splash attention (`splash`); not for token trees
    CPUs          plain batched matrices: XLA runs them in half the time of
                  `jax.nn.dot_product_attention` (`benchmarks/attention.py` measures both)
    else          `jax.nn.dot_product_attention`; also on a TPU where no mesh is named, since XLA
                  cannot split a Pallas kernel by itself

One new token a slot attends to a KV cache through `one_query_attention`: on TPUs by the Pallas
kernel paged attention (`decode_kernel`), which reads what is filled; else by plain products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models import decode_kernel
from sr1_jax.models.matmul import matmul_of
from sr1_jax.models.splash import splash_attention
from sr1_jax.sharding import current_mesh, current_platform, spec

# Of `causal_by_matmul`: fewer make products too small for a CPU, more compute what nobody sees.
_BLOCK_QUERIES = 256


def attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BXKE: Float[Array, "B X K E"],
    v_BXKE: Float[Array, "B X K E"],
    sequence_BT: Int[Array, "B T"] | None = None,
    end_BT: Int[Array, "B T"] | None = None,
    *,
    matmul_dtype: str = "same",
) -> Float[Array, "B T H E"]:
    """Scaled dot-product attention with grouped key/value heads (Vaswani et al. 2017, eq. 1).

    Args:
        q_BTHE: queries, any float dtype.
        k_BXKE: keys; H must be a multiple of K (grouped-query attention, Ainslie et al. 2023).
        v_BXKE: values.
        sequence_BT: of packed rows, the sequence of each token (`packed`): none sees another's.
        end_BT: of rows of token trees instead (`packed`): a token sees itself and those before it
            whose end lies behind it. TPUs compute it without their kernel, which has no such mask.
        matmul_dtype: what CPUs multiply in (`models.matmul`); kernels of other platforms choose.

    Returns:
        Weighted values in the dtype of the queries; the softmax itself runs in float32.
    """
    mesh = current_mesh()
    packed = tuple(x_BT for x_BT in (sequence_BT, end_BT) if x_BT is not None)
    if mesh is None:
        plain = jax.default_backend() == "cpu"
        attend = causal_by_matmul if plain else _library_attention
    else:
        attend = _BY_PLATFORM.get(mesh.devices.flat[0].platform, _library_attention)
    if attend is causal_by_matmul and matmul_dtype != "same":
        attend = functools.partial(attend, matmul_dtype=matmul_dtype)
    if end_BT is not None:
        attend = _library_attention if attend is splash_attention else attend
        attend = functools.partial(attend, may_see=_before_its_end)
    if mesh is None:
        return attend(q_BTHE, k_BXKE, v_BXKE, *packed)
    queries, keys = spec(("batch", None, "heads", None)), spec(("batch", None, "kv_heads", None))
    return jax.shard_map(
        attend,
        mesh=mesh,
        in_specs=(queries, keys, keys, *(spec(("batch", None)) for _ in packed)),
        out_specs=queries,
        check_vma=False,  # a Pallas kernel does not say over which axes its outputs vary
    )(q_BTHE, k_BXKE, v_BXKE, *packed)


def _same_sequence(sequence_BT):
    """Which token may see which, as far as their sequences go: [B, 1, T, T]."""
    return (sequence_BT[:, :, None] == sequence_BT[:, None, :])[:, None]


def _before_its_end(end_BT):
    """Whether the second token's subtree reaches beyond the first: of those before it, whether they
    are its ancestors."""
    return (jnp.arange(end_BT.shape[1])[None, :, None] < end_BT[:, None, :])[:, None]


def _library_attention(q_BTHE, k_BTKE, v_BTKE, packed_BT=None, *, may_see=_same_sequence):
    mask = None if packed_BT is None else may_see(packed_BT)
    return jax.nn.dot_product_attention(q_BTHE, k_BTKE, v_BTKE, mask=mask, is_causal=True)


def causal_by_matmul(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    packed_BT: Int[Array, "B T"] | None = None,
    *,
    may_see: Callable[[jax.Array], jax.Array] = _same_sequence,
    matmul_dtype: str = "same",
    most_queries: int = _BLOCK_QUERIES,
) -> Float[Array, "B T H E"]:
    """Causal attention as two batched matrix products a block of queries, one matrix a key/value
    head.

    Each block sees keys up to its own end: of a long sequence, little more than half of the scores
    are computed.

    Arguments as of `attention`; `may_see` makes of packed_BT which of the tokens before it each may
    see, [B, 1, T, T]; a block has at most `most_queries`.
    """
    matmul = matmul_of(matmul_dtype)
    batch, length, heads, size = q_BTHE.shape
    kv_heads = k_BTKE.shape[2]
    group = heads // kv_heads
    matrices = batch * kv_heads
    q = (q_BTHE * size**-0.5).transpose(0, 2, 1, 3).reshape(matrices, group, length, size)
    k = k_BTKE.transpose(0, 2, 3, 1).reshape(matrices, size, length)
    v = v_BTKE.transpose(0, 2, 1, 3).reshape(matrices, length, size)
    seen_B1TT = None if packed_BT is None else may_see(packed_BT)
    block = -(-length // -(-length // most_queries))
    mixed = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        # In the shape of the products: of a reshaped copy the backward pass would keep both.
        visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None]
        if seen_B1TT is None:
            visible = jnp.tile(visible, (group, 1))
        else:
            visible = visible[None] & seen_B1TT[:, 0, start:stop, :stop]
            visible = jnp.repeat(jnp.tile(visible, (1, group, 1)), kv_heads, axis=0)
        queries = q[:, :, start:stop].reshape(matrices, -1, size)
        scores = jnp.where(visible, matmul(queries, k[..., :stop]), -jnp.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        # Divided after the second product: E numbers a query instead of T.
        sums = weights.sum(axis=-1, keepdims=True)
        part = matmul(weights.astype(v.dtype), v[:, :stop]) / sums
        mixed.append(part.reshape(batch, heads, stop - start, size))
    out_BHTE = jnp.concatenate(mixed, axis=2)
    return out_BHTE.transpose(0, 2, 1, 3).astype(q_BTHE.dtype)


_BY_PLATFORM = {"tpu": splash_attention, "cpu": causal_by_matmul}


def one_query_attention(
    q_BKGE: Float[Array, "B K G E"],
    k_BKNEC: Float[Array, "B K N E C"],
    v_BKXE: Float[Array, "B K X E"],
    position_B: Int[Array, " B"],
    *,
    head_dim: int,
) -> Float[Array, "B K G E"]:
    """`attend_with_one_query`, or the kernel for it of the platform that is traced for.

    On several devices to be called in a shard_map (`sharding.for_own_heads`).

    Args:
        q_BKGE, k_BKNEC, v_BKXE, position_B: see `attend_with_one_query`.
        head_dim: numbers of a head, where several share E (`cache_rows`).
    """
    if current_platform() == "tpu" and decode_kernel.takes(k_BKNEC):
        cores = getattr(current_mesh().devices.flat[0], "num_cores", 1)
        return decode_kernel.attend_to_filled(
            q_BKGE, k_BKNEC, v_BKXE, position_B, head_dim=head_dim, cores=cores
        )
    if head_dim != q_BKGE.shape[-1]:
        q_BKGE *= (q_BKGE.shape[-1] / head_dim) ** 0.5
    return attend_with_one_query(q_BKGE, k_BKNEC, v_BKXE, position_B)


def attend_with_one_query(
    q_BKGE: Float[Array, "B K G E"],
    k_BKNEC: Float[Array, "B K N E C"],
    v_BKXE: Float[Array, "B K X E"],
    position_B: Int[Array, " B"],
) -> Float[Array, "B K G E"]:
    """Attention of one new token a row over a cache in which key x stands at position x.

    Two batched matrix products that read the cache where it lies, one matrix a key/value head
    and block.

    Args:
        q_BKGE: queries, G for each key/value head, any float dtype.
        k_BKNEC: keys, in N blocks of C positions, positions last.
        v_BKXE: values, X = N · C.
        position_B: of the queries; each sees positions up to its own.

    Returns:
        Weighted values in the dtype of the queries; the softmax itself runs in float32.
    """
    batch, kv_heads, blocks, size, block = k_BKNEC.shape
    group = q_BKGE.shape[2]
    # Scaled by a product with a diagonal matrix: what comes before an elementwise product XLA's CPU
    # backend would compute again for each block, rotation and all.
    scale_EE = jnp.diag(jnp.full(size, size**-0.5, q_BKGE.dtype))
    scaled_BKGE = jnp.matmul(q_BKGE, scale_EE, precision="highest")
    q = jnp.broadcast_to(scaled_BKGE[:, :, None], (batch, kv_heads, blocks, group, size))
    scores_BKNGC = jnp.matmul(q, k_BKNEC, preferred_element_type=jnp.float32)
    visible_BX = jnp.arange(blocks * block)[None] <= position_B[:, None]
    # Added, not selected: XLA's CPU backend makes one loop of the product and what is added to it,
    # and all layers add the same. A finite number, since a row that sees nothing is idle, and must
    # not turn into NaN.
    hidden_BX = jnp.where(visible_BX, 0.0, -1e30)
    scores_BKNGC += hidden_BX.reshape(batch, 1, blocks, 1, block)
    weights_BKNGC = jnp.exp(scores_BKNGC - scores_BKNGC.max(axis=(2, 4), keepdims=True))
    sums_BKG1 = weights_BKNGC.sum(axis=(2, 4))[..., None]
    values = v_BKXE.reshape(batch, kv_heads, blocks, block, size)
    mixed_BKNGE = jnp.matmul(
        weights_BKNGC.astype(v_BKXE.dtype), values, preferred_element_type=jnp.float32
    )
    return (mixed_BKNGE.sum(axis=2) / sums_BKG1).astype(q_BKGE.dtype)


def attend_over_cache(
    q_BKGTE: Float[Array, "B K G T E"],
    k_SKNEC: Float[Array, "S K N E C"],
    v_SKXE: Float[Array, "S K X E"],
    rows_B: Int[Array, " B"],
    positions_BT: Int[Array, "B T"],
    *,
    head_dim: int | None = None,
) -> Float[Array, "B K G T E"]:
    """Attention of many new tokens over the caches of some slots, which hold them already.

    Goes over the cache in chunks, with a running maximum and sum of the softmax (Milakov and
    Gimelshein 2018): neither a copy of the rows nor all of the scores ever exists. A CPU takes one
    row after the other, each as far as it has got; others take all rows at once, as far as any has
    got.

    Args:
        q_BKGTE: queries, any float dtype.
        k_SKNEC, v_SKXE: keys and values of all slots, as in `attend_with_one_query`.
        rows_B: slot of each row.
        positions_BT: of the queries; those outside the cache are padding, and their result is
            of no use.
        head_dim: numbers of a head, where several share E (`cache_rows`).

    Returns:
        Weighted values in the dtype of the queries.
    """
    attend = functools.partial(attend_in_chunks, head_dim=head_dim)
    if (current_platform() or jax.default_backend()) != "cpu":
        return attend(q_BKGTE, k_SKNEC, v_SKXE, rows_B, positions_BT, chunk=128)
    # About as many keys as queries: a CPU's fastest products.
    chunk = 256 if q_BKGTE.shape[3] > 128 else 128

    def one_row(row):
        q_KGTE, slot, positions_T = row
        arrays = q_KGTE[None], k_SKNEC, v_SKXE, slot[None], positions_T[None]
        return attend(*arrays, chunk=chunk)[0]

    return jax.lax.map(one_row, (q_BKGTE, rows_B, positions_BT))


def attend_in_chunks(
    q_BKGTE: Float[Array, "B K G T E"],
    k_SKNEC: Float[Array, "S K N E C"],
    v_SKXE: Float[Array, "S K X E"],
    rows_B: Int[Array, " B"],
    positions_BT: Int[Array, "B T"],
    *,
    chunk: int,
    head_dim: int | None = None,
) -> Float[Array, "B K G T E"]:
    """`attend_over_cache` for all rows at once, `chunk` positions at a time (at least C)."""
    batch, kv_heads, group, length, size = q_BKGTE.shape
    block, positions = k_SKNEC.shape[-1], v_SKXE.shape[2]
    blocks = max(1, chunk // block)
    chunk = blocks * block
    q = (q_BKGTE * (head_dim or size) ** -0.5).reshape(batch, kv_heads, group * length, size)
    inside_BT = (positions_BT >= 0) & (positions_BT < positions)
    end = jnp.max(jnp.where(inside_BT, positions_BT + 1, 0))
    rows_B1 = rows_B[:, None]

    def add_chunk(index, carry):
        best_BKQ1, sums_BKQ1, mixed_BKQE = carry
        block_M = index * blocks + jnp.arange(blocks)
        at_C = index * chunk + jnp.arange(chunk)
        k_BMKEC = k_SKNEC.at[rows_B1, :, block_M].get(mode="clip")
        k_BKEC = k_BMKEC.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, size, chunk)
        v_BKCE = v_SKXE.at[rows_B1, :, at_C].get(mode="clip").swapaxes(1, 2)
        scores = jnp.matmul(q, k_BKEC, preferred_element_type=jnp.float32)
        visible = (at_C[None, None] <= positions_BT[..., None])[:, None, None]
        scores = jnp.where(
            visible, scores.reshape(batch, kv_heads, group, length, chunk), -1e30
        ).reshape(*q.shape[:3], chunk)
        better_BKQ1 = jnp.maximum(best_BKQ1, scores.max(axis=-1, keepdims=True))
        weights = jnp.exp(scores - better_BKQ1)
        kept_BKQ1 = jnp.exp(best_BKQ1 - better_BKQ1)
        more = jnp.matmul(weights.astype(v_BKCE.dtype), v_BKCE, preferred_element_type=jnp.float32)
        return (
            better_BKQ1,
            sums_BKQ1 * kept_BKQ1 + weights.sum(axis=-1, keepdims=True),
            mixed_BKQE * kept_BKQ1 + more,
        )

    one = jnp.zeros((*q.shape[:3], 1), jnp.float32)
    start = (one - 1e30, one, jnp.zeros(q.shape, jnp.float32))
    _, sums_BKQ1, mixed_BKQE = jax.lax.fori_loop(0, -(-end // chunk), add_chunk, start)
    # Nothing was added where no row has a token.
    out = mixed_BKQE / jnp.maximum(sums_BKQ1, 1e-30)
    return out.reshape(q_BKGTE.shape).astype(q_BKGTE.dtype)
