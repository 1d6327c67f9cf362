"""Log-probabilities and entropies of given tokens, without ever holding [B, T, V]."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models.decoder import Decoder
from sr1_jax.models.matmul import bfloat16_rows
from sr1_jax.models.packed import PackedSequences, TokenTrees
from sr1_jax.sharding import batch_parts, constrain, current_mesh, reshard


def token_logp(
    model: Decoder,
    ids_BT: Int[Array, "B T"],
    wanted_BT: Float[Array, "B T"],
    *,
    max_wanted: int,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
    packed: PackedSequences | TokenTrees | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each wanted token given those before it, and the entropy it was drawn
    with.

    Only wanted tokens pass the output head: a search agent reads far more than it writes.
    They are gathered row by row, so rows stay on their devices; pass the head `chunk_tokens` at
    a time; and are recomputed in the backward pass: the largest buffer is [chunk_tokens, V] on
    each device, or its share of V where the vocabulary is split.

    Args:
        model: the policy.
        ids_BT: right-padded sequences.
        wanted_BT: nonzero on the tokens wanted; the first token of a sequence has no
            log-probability.
        max_wanted: static bound on the tokens wanted in a row; those past it come back as 0.
        temperature: of sampling; logits are divided by it, here as there. 0 stands for greedy
            decoding and counts as 1.
        chunk_tokens: tokens a chunk on each part of the batch (`sharding.compute_on`).
        packed: of packed rows, the sequence and position of each token; or their token trees.

    Returns:
        logp_BT and entropy_BT (nats), float32; 0 where nothing is wanted and at the
        first token.
    """
    batch, length = ids_BT.shape
    max_wanted = min(max_wanted, length - 1)
    hidden_BTD = model.trunk(ids_BT, packed)
    wanted_BT = (wanted_BT != 0).at[:, 0].set(False)
    if packed is not None:
        wanted_BT &= packed.position_BT > 0
    # Stable: wanted tokens come first, in their order.
    index_BM = jnp.argsort(~wanted_BT, axis=1, stable=True)[:, :max_wanted]
    kept_BM = jnp.take_along_axis(wanted_BT, index_BM, axis=1)
    target_BM = jnp.take_along_axis(ids_BT, index_BM, axis=1)
    # The hidden state before a token predicts it. Mapped over rows, so that a device finds those
    # of its rows without asking the others.
    before_BM = jnp.maximum(index_BM - 1, 0)
    if isinstance(packed, TokenTrees):
        before_BM = jnp.take_along_axis(packed.parent_BT, index_BM, axis=1)
    hidden_BMD = jax.vmap(lambda hidden_TD, at_M: hidden_TD[at_M])(hidden_BTD, before_BM)

    # Every chunk holds tokens of every row: rows are split over devices, so all have a share.
    rows = -(-batch // batch_parts(current_mesh()))
    chunks = -(-rows * max_wanted // chunk_tokens)
    size = -(-max_wanted // chunks)
    padding = chunks * size - max_wanted

    def in_chunks(x_BM):
        x_BM = jnp.pad(x_BM, ((0, 0), (0, padding)) + ((0, 0),) * (x_BM.ndim - 2))
        return x_BM.reshape(batch, chunks, size, *x_BM.shape[2:]).swapaxes(0, 1)

    kernel_DV = model.head_kernel()

    def chunk(pair):
        hidden_BND, target_BN = pair
        hidden_BND = reshard(hidden_BND, ("head_batch", None, None), ("batch", None, None))
        logp_BN, entropy_BN = head_logp(
            hidden_BND, kernel_DV, target_BN, 1 / (temperature or 1.0), model.config.matmul_dtype
        )
        return constrain(logp_BN, "batch", None), constrain(entropy_BN, "batch", None)

    logp_CBN, entropy_CBN = jax.lax.map(chunk, (in_chunks(hidden_BMD), in_chunks(target_BM)))

    def to_BT(x_CBN):
        x_BM = x_CBN.swapaxes(0, 1).reshape(batch, -1)[:, :max_wanted]
        x_BM = jnp.where(kept_BM, x_BM, 0.0)
        return jax.vmap(lambda x_M, at_M: jnp.zeros(length).at[at_M].set(x_M))(x_BM, index_BM)

    return to_BT(logp_CBN), to_BT(entropy_CBN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def head_logp(
    hidden_BND: Float[Array, "B N D"],
    kernel_DV: Float[Array, "D V"],
    target_BN: Int[Array, "B N"],
    scale: float,
    matmul_dtype: str = "same",
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Log-softmax at the targets, and the entropy of the softmax.

    With logits l and p = softmax(l): logp = l[target] - log Σ exp l, H = -Σ p log p. The backward
    pass computes the logits again; of the forward pass it keeps nothing of size V.

    Args:
        hidden_BND: hidden states, any float dtype; logits are rounded to it.
        kernel_DV: of the output head.
        target_BN: tokens.
        scale: static; logits are multiplied by it.
        matmul_dtype: static; see `models.matmul`.

    Returns:
        logp_BN and entropy_BN (nats), float32.
    """
    return _head_forward(hidden_BND, kernel_DV, target_BN, scale, matmul_dtype)[0]


def _product(x_BNK, y_KM, matmul_dtype):
    """Rounded to the dtype of x."""
    return x_BNK @ y_KM if matmul_dtype == "same" else bfloat16_rows(x_BNK, y_KM)


def _head_logits(hidden_BND, kernel_DV, scale, matmul_dtype):
    logits_BNV = _product(hidden_BND, kernel_DV, matmul_dtype)
    logits_BNV = constrain(logits_BNV, "head_batch", None, "head_vocab")
    return logits_BNV.astype(jnp.float32) * scale


def _hits(target_BN, vocab: int):
    """True at the target: summed over, where a look-up would collect a split vocabulary."""
    return jnp.arange(vocab)[None, None] == target_BN[..., None]


def _head_forward(hidden_BND, kernel_DV, target_BN, scale, matmul_dtype):
    logits_BNV = _head_logits(hidden_BND, kernel_DV, scale, matmul_dtype)
    highest_BN = logits_BNV.max(axis=-1)
    shifted_BNV = logits_BNV - highest_BN[..., None]
    weight_BNV = jnp.exp(shifted_BNV)
    total_BN = weight_BNV.sum(axis=-1)
    log_total_BN = jnp.log(total_BN)
    hits_BNV = _hits(target_BN, kernel_DV.shape[1])
    logp_BN = jnp.where(hits_BNV, shifted_BNV, 0.0).sum(axis=-1) - log_total_BN
    entropy_BN = log_total_BN - (weight_BNV * shifted_BNV).sum(axis=-1) / total_BN
    kept = (hidden_BND, kernel_DV, target_BN, highest_BN + log_total_BN, entropy_BN)
    return (logp_BN, entropy_BN), kept


def _head_backward(scale, matmul_dtype, kept, gradients):
    """d logp / d l = [target] - p, and d H / d l = -p (log p + H)."""
    hidden_BND, kernel_DV, target_BN, normaliser_BN, entropy_BN = kept
    d_logp_BN1, d_entropy_BN1 = (gradient[..., None] for gradient in gradients)
    logits_BNV = _head_logits(hidden_BND, kernel_DV, scale, matmul_dtype)
    logp_BNV = logits_BNV - normaliser_BN[..., None]
    from_p_BNV = d_logp_BN1 + d_entropy_BN1 * (logp_BNV + entropy_BN[..., None])
    hits_BNV = _hits(target_BN, kernel_DV.shape[1])
    d_BNV = jnp.where(hits_BNV, d_logp_BN1, 0.0) - jnp.exp(logp_BNV) * from_p_BNV
    d_BNV = (scale * d_BNV).astype(hidden_BND.dtype)
    d_BNV = constrain(d_BNV, "head_batch", None, "head_vocab")
    d_kernel_DV = jnp.einsum("bnd,bnv->dv", hidden_BND, d_BNV)
    d_hidden_BND = _product(d_BNV, kernel_DV.T, matmul_dtype)
    return d_hidden_BND, constrain(d_kernel_DV, None, "head_vocab"), None


head_logp.defvjp(_head_forward, _head_backward)
