"""Fills a model with the tensors of a folder or file, by the table in `families`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.families import EMBEDDING, HEAD, Family, Layout, Shape, Weight
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.sharding import tree_shardings

Bounds = tuple[tuple[int, int], ...]  # first and last + 1 of each axis

# Columns are transposed so many at a time, which makes rows that are written in one run.
_STRIPE_COLUMNS = 256

# Looked through for numbers that are not finite at a time: it stays in a core's cache.
_CHECK_BYTES = 1 << 18

# Tables of rotary frequencies that old files carry; they follow from rope_theta.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """What a reader makes of a file or folder before any tensor is read.

    Attributes:
        path: of the file or folder, for messages.
        config_file: where its settings stand, for messages.
        form: the column of the table that holds its tensor names, "hf" or "gguf".
        family: its rows of the table.
        config: of the decoder to build.
        tokenizer: its tokenizer.
        shapes: of every tensor in it, by name, in row-major order.
        files: that each tensor is in, by name, for messages.
        rows: (name, first, last) gives these rows of the tensor in a float dtype, not to be
            written to; called from several threads at once.
        block_bytes: of the result that one call of `rows` may be for, unless a single row is more.
        far: whether what one process reads others had better not read too.
    """

    path: str
    config_file: str
    form: str
    family: Family
    config: DecoderConfig
    tokenizer: Tokenizer
    shapes: Mapping[str, Shape]
    files: Mapping[str, Path]
    rows: Callable[[str, int, int], np.ndarray]
    block_bytes: int
    far: bool = False


def build(model_files: ModelFiles, mesh: Mesh | None = None) -> Decoder:
    """The decoder that files hold, its parameters in `config.param_dtype`.

    The model is never initialised at random. Each parameter is read tensor by tensor, straight
    into the shards that this process holds of it.

    Args:
        model_files: of a reader, and checked by `check_tensors`.
        mesh: the device mesh; None puts everything on the default device.

    Raises:
        ValueError: an axis does not divide over the mesh, a file is cut short, or a weight is no
            finite number of `config.param_dtype`.
    """
    graph, state, parameters = _abstract(model_files.config)
    rows = {weight.parameter: weight for weight in _rows(model_files)}
    where = dict.fromkeys(parameters)
    if mesh is not None:
        placed = nnx.to_flat_state(tree_shardings(state, mesh))
        where = {".".join(path): variable.get_value() for path, variable in placed}
    filled = [
        (
            tuple(name.split(".")),
            variable.replace(_read(model_files, rows[name], variable, where[name])),
        )
        for name, variable in parameters.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(filled))


@functools.lru_cache(maxsize=4)
def _abstract(config: DecoderConfig):
    """The decoder without values: its graph, its state, and its variables by dotted path."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    return graph, state, {".".join(path): variable for path, variable in nnx.to_flat_state(state)}


def _rows(model_files: ModelFiles) -> tuple[Weight, ...]:
    return model_files.family.weights + (() if model_files.config.tied_embeddings else (HEAD,))


def _tensor_names(model_files: ModelFiles, weight: Weight) -> list[str]:
    """One name, or one for each layer."""
    pattern = getattr(weight, model_files.form)
    if "{}" not in pattern:
        return [pattern]
    return [pattern.format(layer) for layer in range(model_files.config.layers)]


def _parameter_shape(weight: Weight, shape: Shape) -> Shape:
    """The shape without the layer axis."""
    return shape[1:] if "{}" in weight.hf else shape


def check_tensors(model_files: ModelFiles) -> None:
    """Refuses files whose tensors are not those of their config, by names and shapes.

    Raises:
        ValueError: a tensor is missing, not known, or of another shape than the config says.
    """
    if model_files.config.layers > len(model_files.shapes):
        # Before as many names are made up.
        raise ValueError(
            f"{model_files.config_file}: the config asks for {model_files.config.layers} layers, "
            f"but {model_files.path} holds only {len(model_files.shapes)} tensors."
        )
    parameter_shapes = {
        name: variable.shape for name, variable in _abstract(model_files.config)[2].items()
    }
    rows = {weight.parameter for weight in _rows(model_files)}
    if rows != parameter_shapes.keys():
        raise ValueError(
            f"{model_files.path}: no tensor is known to fill "
            f"{listed(parameter_shapes.keys() ^ rows)}."
        )
    expected = {
        name: weight.layout.stored_shape(
            _parameter_shape(weight, parameter_shapes[weight.parameter])
        )
        for weight in _rows(model_files)
        for name in _tensor_names(model_files, weight)
    }
    found = {
        name: shape for name, shape in model_files.shapes.items() if not IGNORED.fullmatch(name)
    }
    head, embedding = (getattr(row, model_files.form) for row in (HEAD, EMBEDDING))
    if missing := expected.keys() - found.keys():
        raise ValueError(f"{model_files.path}: tensors are missing: {listed(missing)}.")
    if model_files.config.tied_embeddings and head in found:
        if not _are_equal(model_files, head, embedding):
            raise ValueError(
                f"{model_files.path}: {head} differs from {embedding}, but the config says "
                "tie_word_embeddings. Set tie_word_embeddings to false if the head is its own."
            )
        del found[head]
    if unknown := found.keys() - expected.keys():
        raise ValueError(
            f"{model_files.path}: tensors that have no place in the model: {listed(unknown)}."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{model_files.path}: {name} has shape {list(found[name])}, but the config asks "
                f"for {list(shape)}."
            )


def _are_equal(model_files: ModelFiles, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers."""
    shape = model_files.shapes[one]
    if model_files.shapes[other] != shape:
        return False
    for first, last in _blocks(0, shape[0], 1024):
        if not np.array_equal(*(model_files.rows(name, first, last) for name in (one, other))):
            return False
    return True


def _read(
    model_files: ModelFiles, weight: Weight, variable, sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """One parameter, in the way that reads least."""
    if model_files.far and jax.process_count() > 1:
        found = _read_by_rows(model_files, weight, variable, sharding)
        if found is not None:
            return found
    return _read_parameter(model_files, weight, variable.shape, variable.dtype, sharding)


def _read_by_rows(
    model_files: ModelFiles, weight: Weight, variable, sharding: jax.sharding.NamedSharding
) -> jax.Array | None:
    """One parameter, of which each process reads other rows of what is stored, and no row twice;
    the devices exchange them, and turn them to where they belong.

    A mesh splits columns of most stored matrices, of which each process would read all rows.

    Returns:
        None where the rows do not divide over the devices.
    """
    layers, mesh = "{}" in weight.hf, sharding.mesh
    stored = weight.layout.stored_shape(_parameter_shape(weight, variable.shape))
    if stored[0] % mesh.size:
        return None
    spec = jax.sharding.PartitionSpec(*([None] if layers else []), mesh.axis_names)
    as_stored = weight._replace(layout=Layout(tuple(slice(n, n + 1) for n in range(len(stored)))))
    shape = (*variable.shape[:1], *stored) if layers else stored
    by_rows = _read_parameter(
        model_files, as_stored, shape, variable.dtype, jax.sharding.NamedSharding(mesh, spec)
    )

    def place(array: jax.Array) -> jax.Array:
        turned = jnp.swapaxes(array, -1, -2) if weight.layout.transposed else array
        return turned.reshape(variable.shape)

    return jax.jit(place, out_shardings=sharding)(by_rows)


def _read_parameter(
    model_files: ModelFiles,
    weight: Weight,
    shape: Shape,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """The tensors of one row of the table, written to where this process holds them.

    Beyond the result, a block of rows for each thread is in memory.
    """
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    dtype = np.dtype(dtype)
    parts = {
        device: tuple(part.indices(size)[:2] for part, size in zip(index, shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    # Devices with the same part share a buffer.
    buffers = {
        bounds: _aligned([stop - start for start, stop in bounds], dtype)
        for bounds in dict.fromkeys(parts.values())
    }
    _fill(model_files, weight, shape, buffers)
    arrays = [jax.device_put(buffers[bounds], device) for device, bounds in parts.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _fill(
    model_files: ModelFiles, weight: Weight, shape: Shape, buffers: Mapping[Bounds, np.ndarray]
) -> None:
    """Reads the parts of a parameter of this shape that the buffers are for, and no other rows."""
    layers = "{}" in weight.hf
    each = _parameter_shape(weight, shape)
    row = weight.layout.stored_shape(each)[1:]
    targets = []
    for bounds, buffer in buffers.items():
        # The layer axis is never split.
        stack = buffer if layers else buffer[None]
        inner = weight.layout.to_stored_bounds(bounds[1:] if layers else bounds, each)
        targets.append((inner, [weight.layout.to_stored(one) for one in stack]))
    transpose = _transposition() if weight.layout.transposed else None

    dtype = next(iter(buffers.values())).dtype

    def copy(layer: int, name: str, first: int, last: int) -> None:
        rows = model_files.rows(name, first, last)
        if not fits(rows, dtype):
            raise ValueError(
                f"{model_files.files[name]}: {name} holds NaN, an infinite number, or one too "
                f"large for {dtype}, in rows {first} to {last - 1}."
            )
        for (outer, *inner), views in targets:
            start, stop = max(first, outer[0]), min(last, outer[1])
            if start >= stop:
                continue
            columns = tuple(slice(*bound) for bound in inner)
            source = rows[(slice(start - first, stop - first), *columns)]
            target = views[layer][start - outer[0] : stop - outer[0]]
            if source.dtype == target.dtype:
                # NumPy copies integers faster than bfloat16, number by number with strides.
                bits = np.dtype(f"u{source.dtype.itemsize}")
                source, target = source.view(bits), target.view(bits)
            if transpose is None:
                target[...] = source
                continue
            for stripe in itertools.starmap(slice, _blocks(0, source.shape[1], _STRIPE_COLUMNS)):
                target[:, stripe] = transpose(source[:, stripe])

    count = max(1, model_files.block_bytes // (math.prod(row) * dtype.itemsize))
    held = _merged([outer for (outer, *_), _ in targets])
    blocks = [block for first, last in held for block in _blocks(first, last, count)]
    names = _tensor_names(model_files, weight)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        tasks = [
            threads.submit(copy, layer, name, *block)
            for layer, name in enumerate(names)
            for block in blocks
        ]
        for task in tasks:
            task.result()


def fits(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether an array holds only finite numbers, none beyond the range of a dtype.

    Apart from the sign, the bits of floats are integers in the same order, and those of infinities
    and NaNs are the largest. As signed integers the greatest is the greatest positive number or
    NaN; as unsigned ones, the negative number or NaN farthest from 0. So two maxima tell, and no
    temporary array is made.

    Args:
        array: of any float dtype.
        dtype: that it is converted to.
    """
    limits = [float(ml_dtypes.finfo(each).max) for each in (array.dtype, dtype)]
    largest = np.array(min(limits), array.dtype)
    size = array.dtype.itemsize
    signed, unsigned = np.dtype(f"i{size}"), np.dtype(f"u{size}")
    limit = int(largest.view(unsigned))
    sign = 1 << (8 * size - 1)
    flat = array.reshape(-1)
    for first, last in _blocks(0, flat.size, _CHECK_BYTES // size):
        part = flat[first:last]
        if part.view(signed).max() > limit or int(part.view(unsigned).max()) > limit + sign:
            return False
    return True


def _transposition() -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives a matrix back, the same, but laid out by columns.

    Putting a transposed view on a CPU device makes XLA copy it, in tiles that fit its registers:
    several times as fast as NumPy, which copies number by number.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return np.asfortranarray
    return lambda matrix: np.asarray(jax.device_put(matrix.T, cpu)).T


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few spans [first, last) as possible, increasing."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _blocks(first: int, last: int, size: int) -> Iterable[tuple[int, int]]:
    return ((start, min(start + size, last)) for start in range(first, last, size))


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An array that a CPU device can take over without a copy: it asks for 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names in order, for messages; of many, the first and how many more."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
