"""The decoder of the Llama/Qwen family, and the value model on the same trunk.

One module covers Qwen2.5, Llama and SmolLM2 (and QK-norm models such as Qwen3): pre-norm
blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward (Touvron et
al. 2023). Layers are stacked along a leading axis L and scanned, so compile time does not grow
with depth.

Sequences are padded on the right: with causal attention, padding never reaches a real token,
so no call needs a padding mask. Rows of several sequences come with `PackedSequences` or
`TokenTrees`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from sr1_jax.models.attention import attention
from sr1_jax.models.lora import LoraConfig, LoraLinear
from sr1_jax.models.matmul import MATMUL_DTYPES, bfloat16_dot_general, bfloat16_rows
from sr1_jax.models.norm import RMSNorm
from sr1_jax.models.packed import PackedSequences, TokenTrees
from sr1_jax.models.remat import NARROW, REMAT_POLICIES, rematerialised
from sr1_jax.models.rotary import RopeScaling, rope_angles, rotate
from sr1_jax.sharding import (
    axis_size,
    constrain,
    current_mesh,
    gather_layer,
    look_up,
    reshard,
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder.

    Attributes:
        vocab_size: V, rows of the embedding.
        width: D, of the activations between layers.
        layers: L.
        heads, kv_heads: H query heads, a multiple of the K key/value heads.
        head_dim: E, even.
        ff_width: F, of the feed-forward layer inside.
        rope_theta, rope_scaling: see `rotary.rope_frequencies`.
        max_positions: the longest context the model was trained for: nothing here depends on it,
            but others ask for it when the model is exported.
        norm_eps: see `norm.rms_norm`.
        qkv_bias: whether queries, keys and values have one.
        qk_norm: whether each head's queries and keys are normed.
        tied_embeddings: whether the output head is the embedding.
        dtype: what activations are computed in.
        param_dtype: what parameters are kept in.
        matmul_dtype: what matrix products multiply in: "same" as activations, or, where those are
            in float32, "bfloat16" with sums in float32 (`models.matmul`).
        remat: what is kept of each layer for the backward pass, see `models.remat`; False stands
            for "none", True for "full".
        unroll: layers laid out one after the other in each turn of the scan over layers: more
            compile time, less copying.
        lora: the adapters of the kernels it names; None without adapters.
        family: of `families.FAMILIES`, where the weights come from one: an export goes back to it.

    Raises:
        ValueError: naming the field, its value and what would do.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff_width: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 32_768
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    matmul_dtype: str = "same"
    remat: str | bool = "none"
    unroll: int = 1
    lora: LoraConfig | None = None
    family: str | None = None

    def __post_init__(self):
        if isinstance(self.remat, bool):
            object.__setattr__(self, "remat", "full" if self.remat else "none")
        for field in _SIZES:
            value = getattr(self, field)
            if not _is_a(numbers.Integral, value) or not 1 <= value < 2**31:
                raise ValueError(f"DecoderConfig.{field} must be at least 1, not {value!r}.")
        for field in ("rope_theta", "norm_eps"):
            value = getattr(self, field)
            if not _is_a(numbers.Real, value) or not 0 < value < math.inf:
                raise ValueError(f"DecoderConfig.{field} must be positive, not {value!r}.")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"DecoderConfig.{field} must be one of {', '.join(choices)}, not "
                    f"{getattr(self, field)!r}."
                )
        if self.matmul_dtype != "same" and self.dtype != "float32":
            raise ValueError(
                f"DecoderConfig.matmul_dtype={self.matmul_dtype!r} is for dtype='float32', not "
                f"{self.dtype!r}, which products multiply in anyway: set it to 'same'."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"DecoderConfig.heads={self.heads} must be a multiple of kv_heads={self.kv_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"DecoderConfig.head_dim={self.head_dim} must be even for rotary positions."
            )


_SIZES = (
    "vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ff_width", "max_positions",
    "unroll",
)  # fmt: skip
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_CHOICES = {
    "remat": tuple(REMAT_POLICIES), "dtype": _DTYPES, "param_dtype": _DTYPES,
    "matmul_dtype": MATMUL_DTYPES,
}  # fmt: skip


def _is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _linear(config: DecoderConfig, rngs: nnx.Rngs, fan_in, out, *, name="", bias=False, zero=False):
    axis = tuple(range(-len(fan_in), 0)) if isinstance(fan_in, tuple) else -1
    layer = nnx.LinearGeneral
    if config.lora is not None and name in config.lora.targets:
        layer = functools.partial(LoraLinear, lora=config.lora)
    return layer(
        fan_in,
        out,
        axis=axis,
        use_bias=bias,
        kernel_init=nnx.initializers.zeros if zero else nnx.initializers.lecun_normal(),
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        dot_general=bfloat16_dot_general if config.matmul_dtype == "bfloat16" else None,
        rngs=rngs,
    )


# Activations between products with weights, [B, T, D], are split over `tensor` along T: norms and
# sums are not computed by each of its devices, and what a layer keeps of its input is shared
# (sequence parallelism: Korthikanti et al. 2022, section 4.2.2). Products see whole sequences.
_BETWEEN, _WHOLE = ("batch", "sequence", None), ("batch", None, None)


def _as_rows(x_BTD: jax.Array) -> jax.Array:
    """Whole sequences for a product with weights, tokens as rows: XLA's CPU backend runs gradients
    of two-dimensional products twice as fast as those with separate batch and time axes. Not
    where sequences were split, since rows could not be split alike."""
    whole_BTD = reshard(x_BTD, _WHOLE, _BETWEEN)
    return whole_BTD if axis_size("sequence") > 1 else whole_BTD.reshape(-1, x_BTD.shape[-1])


def _between(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What a product with weights gave, as activations of this shape [B, T, D]."""
    return constrain(x.reshape(shape), *_BETWEEN)


def _norm(config: DecoderConfig, rngs: nnx.Rngs, size: int) -> RMSNorm:
    return RMSNorm(
        size,
        epsilon=config.norm_eps,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Grouped-query self-attention of one layer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        self.q = _linear(c, rngs, c.width, (c.heads, c.head_dim), name="q", bias=c.qkv_bias)
        self.k = _linear(c, rngs, c.width, (c.kv_heads, c.head_dim), name="k", bias=c.qkv_bias)
        self.v = _linear(c, rngs, c.width, (c.kv_heads, c.head_dim), name="v", bias=c.qkv_bias)
        # Zero: a new model starts as its embedding, and no branch drowns the others at first.
        self.o = _linear(c, rngs, (c.heads, c.head_dim), c.width, name="o", zero=True)
        if c.qk_norm:
            self.q_norm = _norm(c, rngs, c.head_dim)
            self.k_norm = _norm(c, rngs, c.head_dim)
        self.qk_norm, self.head_dim = c.qk_norm, c.head_dim

    def project(self, x_BTD, cos_BTE2, sin_BTE2):
        """Rotated queries and keys, and values: q_BTHE, k_BTKE, v_BTKE."""
        rows = _as_rows(x_BTD)
        q_BTHE, k_BTKE, v_BTKE = (
            constrain(
                checkpoint_name(project(rows), NARROW).reshape(*x_BTD.shape[:2], -1, self.head_dim),
                *("batch", None, axis, None),
            )
            for project, axis in ((self.q, "heads"), (self.k, "kv_heads"), (self.v, "kv_heads"))
        )
        if self.qk_norm:
            q_BTHE, k_BTKE = self.q_norm(q_BTHE), self.k_norm(k_BTKE)
        angles = cos_BTE2[:, :, None], sin_BTE2[:, :, None]
        return rotate(q_BTHE, *angles, axis=-1), rotate(k_BTKE, *angles, axis=-1), v_BTKE

    def merge(self, heads_BTHE):
        """Output projection: heads_BTHE -> BTD."""
        batch, length, *heads = heads_BTHE.shape
        if axis_size("sequence") == 1:
            heads_BTHE = heads_BTHE.reshape(batch * length, *heads)
        return _between(self.o(heads_BTHE), (batch, length, -1))


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c = config
        self.gate = _linear(c, rngs, c.width, c.ff_width, name="gate")
        self.up = _linear(c, rngs, c.width, c.ff_width, name="up")
        self.down = _linear(c, rngs, c.ff_width, c.width, name="down", zero=True)

    def __call__(self, x_BTD):
        rows = _as_rows(x_BTD)
        axes = ("batch", *(None,) * (rows.ndim - 2), "ff")
        gate, up = (constrain(part(rows), *axes) for part in (self.gate, self.up))
        return _between(self.down(jax.nn.silu(gate) * up), x_BTD.shape)


class Block(nnx.Module):
    """One pre-norm layer; `attend` receives q, k, v and decides what is attended to."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = _norm(config, rngs, config.width)
        self.attention = Attention(config, rngs=rngs)
        self.ff_norm = _norm(config, rngs, config.width)
        self.ff = FeedForward(config, rngs=rngs)

    def __call__(self, x_BTD, cos_BTE2, sin_BTE2, attend):
        q_BTHE, k_BTKE, v_BTKE = self.attention.project(
            self.attention_norm(x_BTD), cos_BTE2, sin_BTE2
        )
        attended_BTD = self.attention.merge(attend(q_BTHE, k_BTKE, v_BTKE))
        x_BTD = x_BTD + checkpoint_name(attended_BTD, NARROW)
        return x_BTD + self.ff(self.ff_norm(x_BTD))


class Trunk(nnx.Module):
    """Embedding, stacked blocks and final norm: ids_BT -> hidden_BTD."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nnx.initializers.normal(config.width**-0.5),
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked_blocks(layer_rngs):
            return Block(config, rngs=layer_rngs)

        self.layers = stacked_blocks(rngs)
        self.norm = _norm(config, rngs, config.width)

    def __call__(
        self, ids_BT: Int[Array, "B T"], packed: PackedSequences | TokenTrees | None = None
    ) -> Float[Array, "B T D"]:
        """Hidden states of whole sequences; positions count from 0, padding is on the right.

        With `packed` a row holds several sequences, each of which is as if it were alone.
        """
        positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1]), ids_BT.shape)
        attend = functools.partial(attention, matmul_dtype=self.config.matmul_dtype)
        if packed is not None:
            positions_BT = packed.position_BT
            if isinstance(packed, TokenTrees):
                attend = functools.partial(attend, end_BT=packed.end_BT)
            else:
                attend = functools.partial(attend, sequence_BT=packed.id_BT)
        cos, sin = rope_angles(
            positions_BT, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling
        )
        block_def, stack = nnx.split(self.layers)

        def layer(x_BTD, params):
            block = nnx.merge(block_def, gather_layer(params, self.config.dtype))
            return block(x_BTD, cos, sin, attend), None

        layer = rematerialised(layer, self.config.remat)
        embedded_BTD = constrain(self._embed(ids_BT), *_BETWEEN)
        x_BTD, _ = jax.lax.scan(layer, embedded_BTD, stack, unroll=self.config.unroll)
        return reshard(self.norm(x_BTD), _WHOLE, _BETWEEN)

    def _embed(self, ids_BT):
        if current_mesh() is None:
            return self.embed(ids_BT)
        return look_up(self.embed.embedding[...], ids_BT, self.config.dtype)


class Decoder(nnx.Module):
    """The policy: `model(ids_BT) -> logits_BTV`."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.trunk = Trunk(config, rngs=rngs)
        if not config.tied_embeddings:
            self.head = _linear(config, rngs, config.width, config.vocab_size)

    def head_kernel(self) -> Float[Array, "D V"]:
        """Weights of the output head in the compute dtype, split over a mesh by vocabulary."""
        tied = self.config.tied_embeddings
        kernel_DV = self.trunk.embed.embedding[...].T if tied else self.head.kernel[...]
        kernel_DV = kernel_DV.astype(self.config.dtype)
        kernel_DV = reshard(kernel_DV, (None, "head_vocab"), ("embed", "vocab"))
        # So that its gradient, summed over chunks, is not traded in each of them.
        return constrain(kernel_DV, None, "head_vocab")

    @property
    def trainable(self) -> nnx.filterlib.Filter:
        """Which parameters training changes: all, or with adapters those alone."""
        return nnx.Param if self.config.lora is None else nnx.LoRAParam

    def logits(self, hidden_BTD: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Unnormalised next-token scores, in the compute dtype."""
        if not self.config.tied_embeddings:
            return self.head(hidden_BTD)
        if self.config.matmul_dtype == "bfloat16":
            return bfloat16_rows(hidden_BTD, self.trunk.embed.embedding[...].T)
        return self.trunk.embed.attend(hidden_BTD)

    def __call__(
        self, ids_BT: Int[Array, "B T"], packed: PackedSequences | TokenTrees | None = None
    ) -> Float[Array, "B T V"]:
        """Logits at every position of right-padded sequences, or of packed rows."""
        return self.logits(self.trunk(ids_BT, packed))


class ValueModel(nnx.Module):
    """The critic: the policy's trunk with a scalar head, a parameter tree of its own."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.trunk = Trunk(config, rngs=rngs)
        # Zero: before the first update every state is worth nothing, whatever the trunk says.
        self.head = nnx.Linear(
            config.width,
            1,
            kernel_init=nnx.initializers.zeros,
            dtype=jnp.float32,
            # It is small, and trained also where the trunk is frozen in fewer bits.
            param_dtype=jnp.float32,
            rngs=rngs,
        )

    @property
    def trainable(self) -> nnx.filterlib.Filter:
        """Which parameters training changes: all, or with adapters those and the head."""
        if self.config.lora is None:
            return nnx.Param
        return nnx.Any(nnx.LoRAParam, lambda path, _: path[0] == "head")

    def __call__(
        self, ids_BT: Int[Array, "B T"], packed: PackedSequences | TokenTrees | None = None
    ) -> Float[Array, "B T"]:
        """Value, float32, of the state after each token; of packed rows, within its sequence."""
        return self.head(self.trunk(ids_BT, packed))[..., 0]


def parameter_count(model: nnx.Module) -> int:
    """Number of scalars in all parameters."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
