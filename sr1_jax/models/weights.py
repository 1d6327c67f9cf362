"""Which tensor of a checkpoint becomes which parameter, and the filling of a model with them.

`FAMILIES` is the one table of names. It says, for a parameter of ours, what the tensor is called
in a Hugging Face folder and in a GGUF file, and how the two are laid out. A parameter whose
tensors are numbered by layer is stacked along a leading axis L.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.sharding import tree_shardings

Shape = tuple[int, ...]
Bounds = tuple[tuple[int, int], ...]  # first and one past the last, of each axis

# Rows are read so many bytes at a time: they stay in a core's cache while they are transposed.
_BLOCK_BYTES = 1 << 20


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

        Of axes that are stored as one, only the first may be cut.
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


_TRUNK = (
    Weight("trunk.embed.embedding", "model.embed_tokens.weight", "token_embd.weight", TABLE),
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
        read: (name, first, last) -> those rows of the tensor, in any float dtype; called from
            several threads at once.
    """

    path: str
    config_file: str
    form: str
    family: Family
    config: DecoderConfig
    tokenizer: Tokenizer
    shapes: Mapping[str, Shape]
    read: Callable[[str, int, int], np.ndarray]


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
    graph, state, parameters = _abstract(checkpoint.config)
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


@functools.lru_cache(maxsize=4)
def _abstract(config: DecoderConfig):
    """The decoder without values: its graph, its state, and its variables by dotted path."""
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
    parameter_shapes = {
        name: variable.shape for name, variable in _abstract(checkpoint.config)[2].items()
    }
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
        rows = found[embedding][0]
        if found[head][0] != rows or not all(
            np.array_equal(*(checkpoint.read(name, *block) for name in (head, embedding)))
            for block in _blocks(0, rows, 1024)
        ):
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
    """The tensors of one row of the table, written row by row to where this process holds them.

    Beyond the result, a block of rows for each thread is in memory.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shape, dtype = variable.shape, np.dtype(variable.dtype)
    parts = {
        device: tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    # Devices with the same part share a buffer.
    buffers = {
        bounds: _aligned([stop - start for start, stop in bounds], dtype)
        for bounds in dict.fromkeys(parts.values())
    }
    layers, transposed = "{}" in weight.hf, weight.layout.transposed
    each = _parameter_shape(weight, shape)
    targets = []
    for bounds, buffer in buffers.items():
        # The layer axis is never split. As integers, since NumPy copies those at full speed.
        stack = (buffer if layers else buffer[None]).view(f"u{dtype.itemsize}")
        inner = weight.layout.to_stored_bounds(bounds[1:] if layers else bounds, each)
        targets.append((inner, [weight.layout.to_stored(one) for one in stack]))

    def copy(layer: int, name: str, first: int, last: int) -> None:
        rows = None
        for (outer, *inner), views in targets:
            start, stop = max(first, outer[0]), min(last, outer[1])
            if start >= stop:
                continue
            if rows is None:
                rows = checkpoint.read(name, first, last)
                rows = _spread(rows, dtype) if transposed else rows.astype(dtype, copy=False)
                rows = rows.view(f"u{dtype.itemsize}")
            columns = tuple(slice(*bound) for bound in inner)
            views[layer][start - outer[0] : stop - outer[0]] = rows[
                (slice(start - first, stop - first), *columns)
            ]

    size, *row = weight.layout.stored_shape(each)
    count = max(64, _BLOCK_BYTES // (math.prod(row) * dtype.itemsize))
    names = _tensor_names(checkpoint, weight)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        tasks = [
            threads.submit(copy, layer, name, *block)
            for layer, name in enumerate(names)
            for block in _blocks(0, size, count)
        ]
        for task in tasks:
            task.result()
    arrays = [jax.device_put(buffers[bounds], device) for device, bounds in parts.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _spread(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The rows, an odd number of cache lines apart: then a column is spread over all sets of a
    cache, instead of a few that cannot hold it while it is read."""
    lines = -(-rows.shape[1] * dtype.itemsize // 64) | 1
    spread = np.empty((len(rows), lines * 64 // dtype.itemsize), dtype)[:, : rows.shape[1]]
    spread[...] = rows
    return spread


def _blocks(first: int, last: int, size: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + size, last)) for start in range(first, last, size))


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
