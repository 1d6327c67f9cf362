"""A cross-encoder: query and passage are read together, and one number says how well they fit.

Nogueira and Cho 2019 (arXiv 1901.04085), section 3: the hidden state of the first token goes
through a classifier. Both heads that published ones have compute the same,

    score = w · tanh(W h_first + b) + c

BERT's calls W its pooler, Roberta's has it inside the classifier. The score is the logit, which is
what orders passages; some libraries show its sigmoid.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sr1_jax.models.encoder import Encoder, EncoderConfig


class CrossEncoder(nnx.Module):
    """ids_BT, length_B, type_BT -> score_B."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        small = nnx.initializers.normal(0.02)
        self.encoder = Encoder(config, rngs=rngs)
        self.dense = nnx.Linear(config.width, config.width, kernel_init=small, rngs=rngs)
        self.out = nnx.Linear(config.width, 1, kernel_init=small, rngs=rngs)

    def __call__(self, ids_BT: jax.Array, length_B: jax.Array, type_BT: jax.Array) -> jax.Array:
        """Scores of right-padded pairs, float32.

        Args:
            ids_BT: int32, both texts with the special tokens of the model.
            length_B: int32, tokens of each row.
            type_BT: int32, which text a token is of, where the model tells them apart.
        """
        hidden_BTD = self.encoder(ids_BT, length_B, type_BT)
        # In float32 whatever the encoder computes in: it costs nothing, and scores are compared.
        first_BD = hidden_BTD[:, 0].astype(jnp.float32)
        return self.out(jnp.tanh(self.dense(first_BD)))[:, 0]
