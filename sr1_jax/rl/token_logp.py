"""Log-probabilities and entropies of given tokens, without ever holding [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models.decoder import Decoder


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
    a time; and are recomputed in the backward pass: the largest buffer is [chunk_tokens, V].

    Args:
        model: the policy.
        ids_BT: right-padded sequences.
        mask_BT: nonzero on the tokens wanted; the first token of a row has no log-probability.
        most: static bound on the tokens wanted in a row; those past it come back as 0.
        temperature: of sampling; logits are divided by it, here as there. 0 stands for greedy
            decoding and counts as 1.
        chunk_tokens: tokens a chunk.

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
    # The hidden state before a token predicts it.
    before_BM = jnp.maximum(index_BM - 1, 0)
    hidden_BMD = jnp.take_along_axis(hidden_BTD, before_BM[..., None], axis=1)

    tokens = batch * most
    chunks = -(-tokens // chunk_tokens)
    size = -(-tokens // chunks)
    padding = chunks * size - tokens
    hidden_CND = jnp.pad(hidden_BMD.reshape(tokens, -1), ((0, padding), (0, 0)))
    target_CN = jnp.pad(target_BM.reshape(tokens), (0, padding))

    @jax.checkpoint
    def chunk(hidden_ND, target_N):
        logits_NV = model.logits(hidden_ND).astype(jnp.float32) / (temperature or 1.0)
        logp_NV = jax.nn.log_softmax(logits_NV, axis=-1)
        entropy_N = -jnp.sum(jnp.exp(logp_NV) * logp_NV, axis=-1)
        return jnp.take_along_axis(logp_NV, target_N[:, None], axis=-1)[:, 0], entropy_N

    logp_CN, entropy_CN = jax.lax.map(
        lambda pair: chunk(*pair),
        (hidden_CND.reshape(chunks, size, -1), target_CN.reshape(chunks, size)),
    )

    def to_BT(x_CN):
        x_BM = jnp.where(kept_BM, x_CN.reshape(-1)[:tokens].reshape(batch, most), 0.0)
        rows_B1 = jnp.arange(batch)[:, None]
        return jnp.zeros((batch, length)).at[rows_B1, index_BM].set(x_BM)

    return to_BT(logp_CN), to_BT(entropy_CN)
