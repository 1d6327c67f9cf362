"""FLOPs that a decoder needs, worked out from its shape: those of its matrix products."""

from __future__ import annotations

from sr1_jax.models.decoder import DecoderConfig


def forward_flops(
    config: DecoderConfig, *, tokens: float, pairs: float, head_tokens: float
) -> float:
    """FLOPs of a forward pass, 2 a multiply-add, with D, H, K, E, F, V, L as in `DecoderConfig`:

        2 L tokens (2 D H E + 2 D K E + 3 D F) + 4 L H E pairs + 2 D V head_tokens

    that is queries and output, keys and values, the gated feed-forward layer; scores and sums of
    values; the output head. Norms, rotations and softmax, under 1 % of it, do not count, nor does
    what is computed twice or on padding: this is what Chowdhery et al. 2022 ("PaLM", appendix B)
    call model FLOPs, but for attention, of which only the causal half is needed.

    Args:
        config: of the decoder.
        tokens: that pass the layers.
        pairs: of a token and one that it attends to: T (T + 1) / 2 of a sequence of T.
        head_tokens: of which logits are computed.
    """
    c = config
    attention = 2 * c.width * c.head_dim * (c.heads + c.kv_heads)
    per_token = 2 * (attention + 3 * c.width * c.ff_width)
    per_pair = 4 * c.heads * c.head_dim
    layers = c.layers * (tokens * per_token + pairs * per_pair)
    return layers + 2 * c.width * c.vocab_size * head_tokens
