"""The encoder of the BERT family: E5, BGE, MiniLM and what else is a BertModel or (XLM-)Roberta.

Devlin et al. 2018 (arXiv 1810.04805): learned positions, post-norm layers, attention in both
directions. A sequence of ids becomes hidden states; `pool` makes one vector of them. Layers are
stacked along a leading axis L and scanned, as in `decoder`.

Sequences are padded on the right and come with their lengths. Each row is worked out by itself, so
that a batch may be split over any number of devices without one waiting for another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

# By the name that config.json uses; its "gelu" is the exact one.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
POOLINGS = ("mean", "cls", "last")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and numerics of an encoder.

    Attributes:
        vocab_size: V, rows of the embedding.
        width: D, a multiple of `heads`.
        layers: L.
        heads: H.
        ff_width: F, of the feed-forward layer inside.
        positions: rows of the table of positions.
        first_position: the row of a sequence's first token; Roberta leaves out those up to its
            padding id.
        types: rows of the table of token types; a text alone uses the first, the second of a pair
            the second.
        norm_eps: added to the variance.
        activation: of `ACTIVATIONS`.
        dtype: what activations are computed in; parameters are float32.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    ff_width: int
    positions: int
    first_position: int = 0
    types: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dtype: str = "float32"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}."
            )
        if self.max_tokens < 1:
            raise ValueError(
                f"positions={self.positions} leaves no token after first_position="
                f"{self.first_position}."
            )

    @property
    def max_tokens(self) -> int:
        """Of a sequence."""
        return self.positions - self.first_position


def _linear(config: EncoderConfig, rngs: nnx.Rngs, fan_in, out) -> nnx.LinearGeneral:
    axis = tuple(range(-len(fan_in), 0)) if isinstance(fan_in, tuple) else -1
    return nnx.LinearGeneral(fan_in, out, axis=axis, dtype=config.dtype, rngs=rngs)


def _norm(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # nnx computes mean and variance in float32 whatever the dtype.
    return nnx.LayerNorm(
        config.width,
        epsilon=config.norm_eps,
        use_fast_variance=False,
        dtype=config.dtype,
        rngs=rngs,
    )


class Layer(nnx.Module):
    """One post-norm layer: each branch is added to its input, and then normed."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        c = config
        heads = (c.heads, c.width // c.heads)
        self.q = _linear(c, rngs, c.width, heads)
        self.k = _linear(c, rngs, c.width, heads)
        self.v = _linear(c, rngs, c.width, heads)
        self.o = _linear(c, rngs, heads, c.width)
        self.attention_norm = _norm(c, rngs)
        self.up = _linear(c, rngs, c.width, c.ff_width)
        self.down = _linear(c, rngs, c.ff_width, c.width)
        self.ff_norm = _norm(c, rngs)
        self.activation = c.activation

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
        x_BTD = self.attention_norm(x_BTD + self._attend(x_BTD, real_BT))
        inner_BTF = ACTIVATIONS[self.activation](self.up(x_BTD))
        return self.ff_norm(x_BTD + self.down(inner_BTF))

    def _attend(self, x_BTD, real_BT):
        # Plain products: texts are short, and the kernels of `attention` are for causal ones.
        q_BTHE, k_BTHE, v_BTHE = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        scores_BHTX = jnp.einsum(
            "bthe,bxhe->bhtx", q_BTHE, k_BTHE, preferred_element_type=jnp.float32
        )
        scores_BHTX = scores_BHTX * q_BTHE.shape[-1] ** -0.5
        # Finite: of a row of padding alone the softmax must not be NaN.
        lowest = jnp.finfo(jnp.float32).min
        scores_BHTX = jnp.where(real_BT[:, None, None, :], scores_BHTX, lowest)
        shares_BHTX = jax.nn.softmax(scores_BHTX, axis=-1).astype(v_BTHE.dtype)
        return self.o(jnp.einsum("bhtx,bxhe->bthe", shares_BHTX, v_BTHE))


class Encoder(nnx.Module):
    """ids_BT, length_B, perhaps type_BT -> hidden_BTD."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config

        def embed(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, config.width, dtype=config.dtype, rngs=rngs)

        self.words = embed(config.vocab_size)
        self.positions = embed(config.positions)
        self.types = embed(config.types)
        self.norm = _norm(config, rngs)

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked_layers(layer_rngs):
            return Layer(config, rngs=layer_rngs)

        self.layers = stacked_layers(rngs)

    def __call__(
        self, ids_BT: jax.Array, length_B: jax.Array, type_BT: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states of right-padded sequences, in the compute dtype; of padding they mean
        nothing.

        Args:
            ids_BT: int32.
            length_B: int32, tokens of each row.
            type_BT: int32, of each token; None: all are of the first type.
        """
        length = ids_BT.shape[1]
        if length > self.config.max_tokens:
            raise ValueError(f"{length} tokens exceed the encoder's {self.config.max_tokens}.")
        real_BT = jnp.arange(length)[None] < length_B[:, None]
        place_1T = self.config.first_position + jnp.arange(length)[None]
        types = jnp.zeros((1, 1), jnp.int32) if type_BT is None else type_BT
        x_BTD = self.norm(self.words(ids_BT) + self.types(types) + self.positions(place_1T))
        layer_def, stack = nnx.split(self.layers)

        def one(x_BTD, params):
            return nnx.merge(layer_def, params)(x_BTD, real_BT), None

        return jax.lax.scan(one, x_BTD, stack)[0]


def pool(
    hidden_BTD: jax.Array, length_B: jax.Array, pooling: str, *, normalized: bool
) -> jax.Array:
    """One vector of each sequence's hidden states.

    Args:
        hidden_BTD: any float dtype.
        length_B: tokens of each row; a row without any gives a vector that means nothing.
        pooling: "mean" over tokens, the first ("cls") or the "last" of them.
        normalized: whether vectors are scaled to length 1.

    Returns:
        [B, D] float32.
    """
    hidden_BTD = hidden_BTD.astype(jnp.float32)
    if pooling == "mean":
        real_BT1 = (jnp.arange(hidden_BTD.shape[1])[None] < length_B[:, None])[..., None]
        sum_BD = jnp.sum(jnp.where(real_BT1, hidden_BTD, 0), axis=1)
        vector_BD = sum_BD / jnp.maximum(length_B, 1)[:, None]
    elif pooling == "cls":
        vector_BD = hidden_BTD[:, 0]
    else:
        last_B11 = jnp.maximum(length_B - 1, 0)[:, None, None]
        vector_BD = jnp.take_along_axis(hidden_BTD, last_B11, axis=1)[:, 0]
    if not normalized:
        return vector_BD
    norm_B1 = jnp.linalg.norm(vector_BD, axis=-1, keepdims=True)
    return vector_BD / jnp.maximum(norm_B1, 1e-12)
