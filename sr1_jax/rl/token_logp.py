"""Log-probabilities and entropies of given tokens, without ever holding [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sr1_jax.models.decoder import Decoder


def token_logp(
    model: Decoder,
    ids_BT: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each token given those before it, and the entropy it was drawn with.

    Tokens pass the output head `chunk_tokens` at a time and are recomputed in the backward
    pass, so the largest buffer is [chunk_tokens, V].

    Args:
        model: the policy.
        ids_BT: right-padded sequences.
        temperature: of sampling; logits are divided by it, here as there. 0 stands for greedy
            decoding and counts as 1.
        chunk_tokens: tokens a chunk.

    Returns:
        logp_BT and entropy_BT (nats), float32; both 0 at the first token.
    """
    hidden_BTD = model.trunk(ids_BT)[:, :-1]
    batch, length, width = hidden_BTD.shape
    tokens = batch * length
    chunks = -(-tokens // chunk_tokens)
    size = -(-tokens // chunks)
    padding = chunks * size - tokens
    hidden_CND = jnp.pad(hidden_BTD.reshape(tokens, width), ((0, padding), (0, 0)))
    target_CN = jnp.pad(ids_BT[:, 1:].reshape(tokens), (0, padding))

    @jax.checkpoint
    def chunk(hidden_ND, target_N):
        logits_NV = model.logits(hidden_ND).astype(jnp.float32) / (temperature or 1.0)
        logp_NV = jax.nn.log_softmax(logits_NV, axis=-1)
        entropy_N = -jnp.sum(jnp.exp(logp_NV) * logp_NV, axis=-1)
        return jnp.take_along_axis(logp_NV, target_N[:, None], axis=-1)[:, 0], entropy_N

    logp_CN, entropy_CN = jax.lax.map(
        lambda pair: chunk(*pair),
        (hidden_CND.reshape(chunks, size, width), target_CN.reshape(chunks, size)),
    )

    def to_BT(x_CN):
        return jnp.pad(x_CN.reshape(-1)[:tokens].reshape(batch, length), ((0, 0), (1, 0)))

    return to_BT(logp_CN), to_BT(entropy_CN)
