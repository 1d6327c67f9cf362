"""Model families: which stored tensor becomes which parameter.

`FAMILIES` is the one table of names. It says, for a parameter of ours, what the tensor is called
in a Hugging Face folder and in a GGUF file, and how the two are laid out. A parameter whose
tensors are numbered by layer is stacked along a leading axis L.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Bounds = tuple[tuple[int, int], ...]  # first and one past the last, of each axis


class Layout(NamedTuple):
    """Which axes of a parameter make up each axis of the tensor it is stored as.

    Attributes:
        axes: for each stored axis, a slice of our axes.
        transposed: whether our first axes are its last.
    """

    axes: tuple[slice, ...]
    transposed: bool = False

    def stored_shape(self, shape: Shape) -> Shape:
        return tuple(math.prod(shape[axes]) for axes in self.axes)

    def to_stored(self, ours: np.ndarray) -> np.ndarray:
        """The array as it is stored: a view of it, if it is contiguous."""
        shape = self.stored_shape(ours.shape)
        return ours.reshape(shape[::-1]).T if self.transposed else ours.reshape(shape)

    def to_stored_bounds(self, bounds: Bounds, shape: Shape) -> Bounds:
        """Where a part of a parameter lies in the stored tensor.

        Of axes that are stored as one, only the first may be split.
        """
        found = []
        for axes in self.axes:
            (first, last), *rest = bounds[axes]
            assert all(b == (0, size) for b, size in zip(rest, shape[axes][1:])), (bounds, shape)
            unit = math.prod(shape[axes][1:])
            found.append((first * unit, last * unit))
        return tuple(found)


def _kernel(inputs: int) -> Layout:
    """A matrix [out, in] there; here the first `inputs` axes are the input, the rest the output."""
    return Layout((slice(inputs, None), slice(None, inputs)), transposed=True)


VECTOR = Layout((slice(None),))
TABLE = Layout((slice(0, 1), slice(1, None)))
FROM_WIDTH = _kernel(inputs=1)
FROM_HEADS = _kernel(inputs=2)


class Weight(NamedTuple):
    """A row of the table; `{}` in a name stands for the layer."""

    parameter: str
    hf: str
    gguf: str
    layout: Layout


EMBEDDING = Weight("trunk.embed.embedding", "model.embed_tokens.weight", "token_embd.weight", TABLE)
_TRUNK = (
    EMBEDDING,
    Weight(
        "trunk.layers.attention_norm.scale",
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
        VECTOR,
    ),
    Weight(
        "trunk.layers.attention.q.kernel",
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        FROM_WIDTH,
    ),
    Weight(
        "trunk.layers.attention.k.kernel",
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        FROM_WIDTH,
    ),
    Weight(
        "trunk.layers.attention.v.kernel",
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
        FROM_WIDTH,
    ),
    Weight(
        "trunk.layers.attention.o.kernel",
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
        FROM_HEADS,
    ),
    Weight(
        "trunk.layers.ff_norm.scale",
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
        VECTOR,
    ),
    Weight(
        "trunk.layers.ff.gate.kernel",
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
        FROM_WIDTH,
    ),
    Weight(
        "trunk.layers.ff.up.kernel",
        "model.layers.{}.mlp.up_proj.weight",
        "blk.{}.ffn_up.weight",
        FROM_WIDTH,
    ),
    Weight(
        "trunk.layers.ff.down.kernel",
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
        FROM_WIDTH,
    ),
    Weight("trunk.norm.scale", "model.norm.weight", "output_norm.weight", VECTOR),
)
_QKV_BIAS = tuple(
    Weight(
        f"trunk.layers.attention.{x}.bias",
        f"model.layers.{{}}.self_attn.{x}_proj.bias",
        f"blk.{{}}.attn_{x}.bias",
        VECTOR,
    )
    for x in "qkv"
)
_QK_NORM = tuple(
    Weight(
        f"trunk.layers.attention.{x}_norm.scale",
        f"model.layers.{{}}.self_attn.{x}_norm.weight",
        f"blk.{{}}.attn_{x}_norm.weight",
        VECTOR,
    )
    for x in "qk"
)
# Only in a model whose output layer is not its embedding.
HEAD = Weight("head.kernel", "lm_head.weight", "output.weight", FROM_WIDTH)


class Family(NamedTuple):
    """A model family: its rows of the table, and what sets its decoder apart.

    Attributes:
        weights: its rows.
        hf_class: what transformers and vLLM call its language model.
        qkv_bias, qk_norm: as in `decoder.DecoderConfig`.
        more: further keys of its config.json, for exports, where the family's own default would
            change the computation.
    """

    weights: tuple[Weight, ...]
    hf_class: str
    qkv_bias: bool = False
    qk_norm: bool = False
    more: tuple[tuple[str, Any], ...] = ()


# Keyed by `model_type` of config.json, which is also `general.architecture` of GGUF. A family that
# differs in nothing else is one row here.
FAMILIES = {
    "llama": Family(_TRUNK, "LlamaForCausalLM"),
    "mistral": Family(_TRUNK, "MistralForCausalLM", more=(("sliding_window", None),)),
    "qwen2": Family(_TRUNK + _QKV_BIAS, "Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family(_TRUNK + _QK_NORM, "Qwen3ForCausalLM", qk_norm=True),
}


def family_of(name: str, where: str) -> Family:
    """The family called `name`; raises ValueError, naming `where` it was asked for."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{where}: the architecture '{name}' is not supported; supported are "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[name]
