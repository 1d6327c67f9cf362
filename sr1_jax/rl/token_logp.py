"""Log-probabilities and entropies of given tokens, without ever holding [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models.decoder import Decoder
from sr1_jax.sharding import batch_parts, constrain, current_mesh


def token_logp(
    model: Decoder,
    ids_BT: Int[Array, "B T"],
    mask_BT: Float[Array, "B T"],
    *,
    most: int,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each masked-in token given those before it, and the entropy it was
    drawn with.

    Only tokens of mask 1 pass the output head: a search agent reads far more than it writes.
    They are gathered row by row, so rows stay on their devices; pass the head `chunk_tokens` at
    a time; and are recomputed in the backward pass: the largest buffer is [chunk_tokens, V] on
    each device, or its share of V where the vocabulary is split.

    Args:
        model: the policy.
        ids_BT: right-padded sequences.
        mask_BT: nonzero on the tokens wanted; the first token of a row has no log-probability.
        most: static bound on the tokens wanted in a row; those past it come back as 0.
        temperature: of sampling; logits are divided by it, here as there. 0 stands for greedy
            decoding and counts as 1.
        chunk_tokens: tokens a chunk on each part of the batch (`sharding.compute_on`).

    Returns:
        logp_BT and entropy_BT (nats), float32; 0 where mask_BT is 0 and at the first token.
    """
    batch, length = ids_BT.shape
    most = min(most, length - 1)
    hidden_BTD = model.trunk(ids_BT)
    wanted_BT = (mask_BT != 0).at[:, 0].set(False)
    # Stable: wanted tokens come first, in their order.
    index_BM = jnp.argsort(~wanted_BT, axis=1, stable=True)[:, :most]
    kept_BM = jnp.take_along_axis(wanted_BT, index_BM, axis=1)
    target_BM = jnp.take_along_axis(ids_BT, index_BM, axis=1)
    # The hidden state before a token predicts it. Mapped over rows, so that a device finds those
    # of its rows without asking the others.
    before_BM = jnp.maximum(index_BM - 1, 0)
    hidden_BMD = jax.vmap(lambda hidden_TD, at_M: hidden_TD[at_M])(hidden_BTD, before_BM)

    # Every chunk holds tokens of every row: rows are split over devices, so all have a share.
    rows = -(-batch // batch_parts(current_mesh()))
    chunks = -(-rows * most // chunk_tokens)
    size = -(-most // chunks)
    padding = chunks * size - most

    def in_chunks(x_BM):
        x_BM = jnp.pad(x_BM, ((0, 0), (0, padding)) + ((0, 0),) * (x_BM.ndim - 2))
        return x_BM.reshape(batch, chunks, size, *x_BM.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def chunk(hidden_BND, target_BN):
        logits_BNV = constrain(model.logits(hidden_BND), "batch", None, "vocab")
        logits_BNV = logits_BNV.astype(jnp.float32) / (temperature or 1.0)
        logp_BNV = jax.nn.log_softmax(logits_BNV, axis=-1)
        entropy_BN = -jnp.sum(jnp.exp(logp_BNV) * logp_BNV, axis=-1)
        # A sum over the one, where a look-up would collect a vocabulary split over devices.
        hit_BNV = jnp.arange(logp_BNV.shape[-1])[None, None] == target_BN[..., None]
        return jnp.sum(jnp.where(hit_BNV, logp_BNV, 0.0), axis=-1), entropy_BN

    logp_CBN, entropy_CBN = jax.lax.map(
        lambda pair: chunk(*pair), (in_chunks(hidden_BMD), in_chunks(target_BM))
    )

    def to_BT(x_CBN):
        x_BM = x_CBN.swapaxes(0, 1).reshape(batch, -1)[:, :most]
        x_BM = jnp.where(kept_BM, x_BM, 0.0)
        return jax.vmap(lambda x_M, at_M: jnp.zeros(length).at[at_M].set(x_M))(x_BM, index_BM)

    return to_BT(logp_CBN), to_BT(entropy_CBN)
