"""Which tensor of a checkpoint becomes which parameter, and the filling of a model with them.

`FAMILIES` is the one table of names. It says, for a parameter of ours, what the tensor is called
in a Hugging Face folder and in a GGUF file, and how the two are laid out. A parameter whose
tensors are numbered by layer is stacked along a leading axis L.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.sharding import tree_shardings

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How a checkpoint stores a parameter of a given shape, the way from there to ours and back."""

    stored_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_stored: Callable[[np.ndarray], np.ndarray]


def _kernel(inputs: int) -> Layout:
    """A matrix [out, in] there; here the first `inputs` axes are the input, the rest the output."""
    return Layout(
        lambda shape: (math.prod(shape[inputs:]), math.prod(shape[:inputs])),
        lambda stored, shape: stored.T.reshape(shape),
        lambda ours: ours.reshape(math.prod(ours.shape[:inputs]), -1).T,
    )


SAME = Layout(lambda shape: shape, lambda stored, shape: stored, lambda ours: ours)
FLAT = Layout(lambda shape: (math.prod(shape),), np.reshape, np.ravel)
FROM_WIDTH = _kernel(inputs=1)
FROM_HEADS = _kernel(inputs=2)


class Weight(NamedTuple):
    """A row of the table; `{}` in a name stands for the layer."""

    parameter: str
    hf: str
    gguf: str
    layout: Layout


_TRUNK = (
    Weight("trunk.embed.embedding", "model.embed_tokens.weight", "token_embd.weight", SAME),
    Weight(
        "trunk.layers.attention_norm.scale",
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
        SAME,
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
        SAME,
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
    Weight("trunk.norm.scale", "model.norm.weight", "output_norm.weight", SAME),
)
_QKV_BIAS = tuple(
    Weight(
        f"trunk.layers.attention.{x}.bias",
        f"model.layers.{{}}.self_attn.{x}_proj.bias",
        f"blk.{{}}.attn_{x}.bias",
        FLAT,
    )
    for x in "qkv"
)
_QK_NORM = tuple(
    Weight(
        f"trunk.layers.attention.{x}_norm.scale",
        f"model.layers.{{}}.self_attn.{x}_norm.weight",
        f"blk.{{}}.attn_{x}_norm.weight",
        SAME,
    )
    for x in "qk"
)
# Only in a model whose output layer is not its embedding.
HEAD = Weight("head.kernel", "lm_head.weight", "output.weight", FROM_WIDTH)


class Family(NamedTuple):
    """A model family: its rows of the table, and what sets its decoder apart."""

    weights: tuple[Weight, ...]
    qkv_bias: bool = False
    qk_norm: bool = False


# Keyed by `model_type` of config.json, which is also `general.architecture` of GGUF.
FAMILIES = {
    "llama": Family(_TRUNK),
    "mistral": Family(_TRUNK),
    "qwen2": Family(_TRUNK + _QKV_BIAS, qkv_bias=True),
    "qwen3": Family(_TRUNK + _QK_NORM, qk_norm=True),
}

# Tables of rotary frequencies that old files carry; they follow from rope_theta.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def family_of(name: str, where: str) -> Family:
    """The family called `name`; raises ValueError, naming `where` it was asked for."""
    if name not in FAMILIES:
        raise ValueError(
            f"{where}: the architecture '{name}' is not supported; supported are "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[name]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a reader makes of a file or folder before any tensor is read.

    Attributes:
        path: of the file or folder, for messages.
        config_file: where its settings stand, for messages.
        form: the column of the table that holds its tensor names, "hf" or "gguf".
        family: its rows of the table.
        config: of the decoder to build.
        tokenizer: its tokenizer.
        shapes: of every tensor in it, by name, in row-major order.
        read: returns the named tensor in any float dtype.
    """

    path: str
    config_file: str
    form: str
    family: Family
    config: DecoderConfig
    tokenizer: Tokenizer
    shapes: Mapping[str, Shape]
    read: Callable[[str], np.ndarray]


def build(checkpoint: Checkpoint, mesh: Mesh | None = None) -> Decoder:
    """The decoder of a checkpoint, its parameters in `config.param_dtype`.

    The model is never initialised at random. Each parameter is read tensor by tensor, straight
    into the shards that this process holds of it.

    Args:
        checkpoint: of a reader, and checked by `check_tensors`.
        mesh: of `sharding.make_mesh`; None puts everything on the default device.

    Raises:
        ValueError: an axis does not divide over the mesh, or a file is cut short.
    """
    graph, state, parameters = _abstract(checkpoint)
    rows = {weight.parameter: weight for weight in _rows(checkpoint)}
    where = dict.fromkeys(parameters)
    if mesh is not None:
        placed = nnx.to_flat_state(tree_shardings(state, mesh))
        where = {".".join(path): variable.get_value() for path, variable in placed}
    filled = [
        (
            tuple(name.split(".")),
            variable.replace(_read_parameter(checkpoint, rows[name], variable, where[name])),
        )
        for name, variable in parameters.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _abstract(checkpoint: Checkpoint):
    """The decoder without values: its graph, its state, and its variables by dotted path."""
    config = checkpoint.config
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return graph, state, {".".join(path): variable for path, variable in nnx.to_flat_state(state)}


def _rows(checkpoint: Checkpoint) -> tuple[Weight, ...]:
    return checkpoint.family.weights + (() if checkpoint.config.tied_embeddings else (HEAD,))


def _tensor_names(checkpoint: Checkpoint, weight: Weight) -> list[str]:
    """One name, or one for each layer."""
    pattern = getattr(weight, checkpoint.form)
    if "{}" not in pattern:
        return [pattern]
    return [pattern.format(layer) for layer in range(checkpoint.config.layers)]


def _parameter_shape(weight: Weight, shape: Shape) -> Shape:
    """The shape without the layer axis."""
    return shape[1:] if "{}" in weight.hf else shape


def check_tensors(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint whose tensors are not those of its config, by names and shapes.

    Raises:
        ValueError: a tensor is missing, not known, or of another shape than the config says.
    """
    parameter_shapes = {name: variable.shape for name, variable in _abstract(checkpoint)[2].items()}
    rows = {weight.parameter for weight in _rows(checkpoint)}
    if rows != parameter_shapes.keys():
        raise ValueError(
            f"{checkpoint.path}: no tensor is known to fill "
            f"{_listed(parameter_shapes.keys() ^ rows)}."
        )
    expected = {
        name: weight.layout.stored_shape(
            _parameter_shape(weight, parameter_shapes[weight.parameter])
        )
        for weight in _rows(checkpoint)
        for name in _tensor_names(checkpoint, weight)
    }
    found = {
        name: shape for name, shape in checkpoint.shapes.items() if not IGNORED.fullmatch(name)
    }
    head, embedding = (getattr(row, checkpoint.form) for row in (HEAD, _TRUNK[0]))
    if missing := expected.keys() - found.keys():
        raise ValueError(f"{checkpoint.path}: tensors are missing: {_listed(missing)}.")
    if checkpoint.config.tied_embeddings and head in found:
        if not np.array_equal(checkpoint.read(head), checkpoint.read(embedding)):
            raise ValueError(
                f"{checkpoint.path}: {head} differs from {embedding}, but the config says "
                "tie_word_embeddings. Set tie_word_embeddings to false if the head is its own."
            )
        del found[head]
    if unknown := found.keys() - expected.keys():
        raise ValueError(
            f"{checkpoint.path}: tensors that have no place in the model: {_listed(unknown)}."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{checkpoint.path}: {name} has shape {list(found[name])}, but the config asks "
                f"for {list(shape)}."
            )


def _read_parameter(
    checkpoint: Checkpoint, weight: Weight, variable, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """The tensors of one row in our layout; one of them at a time is in memory, and what this
    process holds of the parameter."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape = variable.shape
    parts = {
        device: tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    dtype = np.dtype(variable.dtype)
    # Devices with the same part share a buffer.
    buffers = {
        bounds: _aligned([stop - start for start, stop in bounds], dtype)
        for bounds in dict.fromkeys(parts.values())
    }
    layers = "{}" in weight.hf
    for layer, name in enumerate(_tensor_names(checkpoint, weight)):
        tensor = weight.layout.to_ours(checkpoint.read(name), _parameter_shape(weight, shape))
        for bounds, buffer in buffers.items():
            index = tuple(slice(*bound) for bound in bounds)
            if layers:  # the layer axis is never split
                buffer[layer] = tensor[index[1:]]
            else:
                buffer[...] = tensor[index]
    arrays = [jax.device_put(buffers[bounds], device) for device, bounds in parts.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An array that a CPU device can take over without a copy: it asks for 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
