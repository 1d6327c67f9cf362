"""Search by inner product over vectors that all devices of a mesh share.

The vectors are split over all axes of the mesh, in the order of the corpus. A device multiplies a
batch of queries with a block of its vectors at a time and keeps the k best of each block, then the
k best of those; no score is written for longer than its block. What the devices found is merged on
the host: a program without collectives may run beside those of a rollout, whichever thread starts
it.

The k best of a block are found without sorting it. Its scores are split into groups of neighbours;
only the k groups with the highest maxima are looked through. That is exact, equal scores in corpus
order included: each of the k groups holds a passage that comes before any in a group left out (by a
higher score, or by the same one further ahead, since groups follow each other as passages do).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.retrieval.vectors import Vectors
from sr1_jax.sharding import MESH_AXES

GROUP = 64  # neighbours that one maximum stands for
_LEAST_K = 8  # passages are looked for in powers of two from here: few programs serve any k
_ROWS = PartitionSpec(MESH_AXES)


class Found(NamedTuple):
    """Best passages of each query, best first, equal scores in corpus order.

    Attributes:
        score_Bk: float32.
        number_Bk: int64, places in the corpus.
    """

    score_Bk: np.ndarray
    number_Bk: np.ndarray


class VectorSearch:
    """Vectors on the devices of a mesh, and the programs that search them.

    Args:
        vectors: of at least one passage.
        mesh: all of its axes share the vectors.
        block: vectors that a device multiplies at a time, at most.
        approximate: whether the best of a block are found by `jax.lax.approx_max_k`, which is
            faster on TPUs and exact on CPUs; equal scores then come in any order.
        recall: of it that is asked for.
        batches: numbers of queries that programs are made for, increasing. Fewer are padded, more
            are searched in turn.
    """

    def __init__(
        self,
        vectors: Vectors,
        mesh: Mesh,
        *,
        block: int = 8192,
        approximate: bool = False,
        recall: float = 0.95,
        batches: tuple[int, ...] = (1, 8, 64, 256),
    ):
        self.count, self.width, self.dtype = vectors.count, vectors.width, vectors.dtype
        self._mesh, self._batches, self._block = mesh, batches, block
        self._rows = _layout(vectors.count, mesh.size, block)[1]
        rows = vectors.rows
        if vectors.dtype == "bfloat16" and mesh.devices.flat[0].platform == "cpu":
            # As bits: XLA's CPU backend would convert all of a bfloat16 array in every search.
            rows = _bits_of(vectors.rows)
        self._values = _placed(rows, vectors, self._rows, mesh)
        self._scales = (
            None if vectors.scales is None else _placed(vectors.scales, vectors, self._rows, mesh)
        )
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._program = search_program(
            mesh, vectors.count, block, approximate=approximate, recall=recall
        )

    def __call__(self, query_BD: np.ndarray, k: int) -> Found:
        """The `k` best passages of each query, or all if there are fewer.

        Args:
            query_BD: float32; any number of queries.
            k: at least 1.
        """
        k = min(k, self.count)
        parts = [
            self._some(query_BD[first : first + self._batches[-1]], k)
            for first in range(0, len(query_BD), self._batches[-1])
        ]
        if not parts:
            return Found(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        return Found(*map(np.concatenate, zip(*parts)))

    def _some(self, query_BD: np.ndarray, k: int) -> Found:
        count = len(query_BD)
        size = next(batch for batch in self._batches if batch >= count)
        padded_BD = np.zeros((size, self.width), np.float32)
        padded_BD[:count] = query_BD
        queries = jax.device_put(padded_BD, self._replicated)
        more = padded_k(k, self.count, self._mesh, self._block)
        found = self._program(self._values, self._scales, queries, k=more)
        score_PBk, number_PBk = (np.asarray(x)[:, :count] for x in found)
        return merged(score_PBk, number_PBk, k)


def search_program(
    mesh: Mesh, count: int, block: int, *, approximate: bool = False, recall: float = 0.95
) -> Any:
    """The jitted search of `count` vectors on a mesh, called with values [n, D] and scales [n] or
    None, both as `part_shapes` says, queries [B, D] and k. The arguments are those of
    `VectorSearch`."""
    block, rows = _layout(count, mesh.size, block)
    best = functools.partial(_approximately_best, recall=recall) if approximate else best_of
    program = functools.partial(_search, mesh=mesh, block=block, count=count, rows=rows, best=best)
    return jax.jit(program, static_argnames=("k",))


def padded_k(k: int, count: int, mesh: Mesh, block: int) -> int:
    """Passages that a program looks for when k are wanted: few programs serve any k."""
    return min(max(_LEAST_K, 1 << (k - 1).bit_length()), _layout(count, mesh.size, block)[1])


def part_shapes(
    count: int, width: int, dtype: str, mesh: Mesh, block: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
    """Values and scales of `count` vectors on the devices of a mesh, padding included."""
    rows = _layout(count, mesh.size, block)[1] * mesh.size
    values = jax.ShapeDtypeStruct(
        (rows, width), jnp.dtype(dtype), sharding=_placement(jnp.dtype(dtype), mesh)
    )
    if dtype != "int8":
        return values, None
    return values, jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=NamedSharding(mesh, _ROWS))


def _placement(dtype: Any, mesh: Mesh) -> NamedSharding | Format:
    """Where values lie, and how: a TPU would lay out int8 in tiles of 32 rows, from which the
    product reads no block without all of them being laid out anew."""
    where = NamedSharding(mesh, _ROWS)
    if dtype != jnp.int8 or mesh.devices.flat[0].platform != "tpu":
        return where
    return Format(Layout((0, 1), ((8, 128), (4, 1))), where)


def merged(score_PBk: np.ndarray, number_PBk: np.ndarray, k: int) -> Found:
    """The best of what P parts of a corpus gave, each best first and equal scores in its order.

    Args:
        score_PBk: float32, of each part; parts in corpus order, which keeps equal scores in it.
        number_PBk: places in the corpus.
        k: at most as many as all parts found.
    """
    score_BM, number_BM = (
        np.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in (score_PBk, number_PBk)
    )
    best_Bk = np.argsort(-score_BM, axis=1, kind="stable")[:, :k]
    return Found(
        np.take_along_axis(score_BM, best_Bk, axis=1),
        np.take_along_axis(number_BM, best_Bk, axis=1).astype(np.int64),
    )


def _layout(count: int, devices: int, block: int) -> tuple[int, int]:
    """Vectors of a block, and of a device, those that pad the last block included."""
    share = -(-count // devices)
    block = -(-min(block, share) // GROUP) * GROUP
    return block, -(-share // block) * block


def _placed(read, vectors: Vectors, rows: int, mesh: Mesh) -> jax.Array:
    """Rows on the devices, zeros past the last; each is read once, for the device that keeps it."""
    trailing = np.shape(read(0, 1))[1:]
    shape = (rows * mesh.size, *trailing)

    def part(index):
        first, last, _ = index[0].indices(shape[0])
        values = np.asarray(read(min(first, vectors.count), min(last, vectors.count)))
        padding = ((0, last - first - len(values)), *((0, 0) for _ in trailing))
        return np.pad(values, padding) if padding[0][1] else values

    placed = jax.make_array_from_callback(shape, NamedSharding(mesh, _ROWS), part)
    where = _placement(placed.dtype, mesh)
    return jax.device_put(placed, where, donate=True) if isinstance(where, Format) else placed


def _bits_of(rows):
    return lambda first, last: np.asarray(rows(first, last)).view(np.uint16)


def _search(values_ND, scale_N, query_BD, *, k, mesh, block, count, rows, best):
    """What each device finds among its vectors: scores and numbers [devices, B, k]."""
    one_device = functools.partial(
        _search_device, k=k, mesh=mesh, block=block, count=count, rows=rows, best=best
    )
    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(_ROWS, None if scale_N is None else _ROWS, PartitionSpec()),
        out_specs=(_ROWS, _ROWS),
        check_vma=False,
    )(values_ND, scale_N, query_BD)


def _search_device(values_nD, scale_n, query_BD, *, k, mesh, block, count, rows, best):
    first = jax.lax.axis_index(MESH_AXES) * rows
    platform = mesh.devices.flat[0].platform

    def part(x, start):
        return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, block)

    def one(_, start):
        score_bB = _scores(part(values_nD, start), part(scale_n, start), query_BD, platform)
        real_b = first + start + jnp.arange(block) < count
        score_bB = jnp.where(real_b[:, None], score_bB, -jnp.inf)
        score_Bk, place_Bk = best(score_bB, min(k, block))
        return None, (score_Bk, start + place_Bk)

    _, (score_PBk, place_PBk) = jax.lax.scan(one, None, jnp.arange(0, rows, block))
    score_BM, place_BM = (
        jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in (score_PBk, place_PBk)
    )
    # Blocks follow each other, and of equal scores top_k takes the first.
    score_Bk, best_Bk = jax.lax.top_k(score_BM, k)
    number_Bk = first + jnp.take_along_axis(place_BM, best_Bk, axis=1)
    return score_Bk[None], number_Bk[None]


def _scores(values_bD, scale_b, query_BD, platform):
    """Inner products [b, B] in float32.

    Where vectors are kept in fewer bits, so are the queries; CPUs, which have no products of
    bfloat16, compute with the same numbers in float32.
    """
    if values_bD.dtype == jnp.float32:
        operands, precision = (query_BD, values_bD), jax.lax.Precision.HIGHEST
    else:
        query_BD, precision = query_BD.astype(jnp.bfloat16), None
        if platform == "cpu":
            operands = query_BD.astype(jnp.float32), _as_float32(values_bD)
        else:
            operands = query_BD, values_bD.astype(jnp.bfloat16)
    score_bB = jnp.einsum(
        "bd,nd->nb", *operands, precision=precision, preferred_element_type=jnp.float32
    )
    if scale_b is not None:
        score_bB = score_bB * scale_b[:, None]
    # top_k orders -0.0 below 0.0.
    return jnp.where(score_bB == 0, 0.0, score_bB)


def _as_float32(x: jax.Array) -> jax.Array:
    """Vectors on a CPU as float32: int8, or the bits of bfloat16, the upper half of float32's."""
    if x.dtype != jnp.uint16:
        return x.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def best_of(score_bB: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best of each column and their places [B, k], best first, the first of equal ones first.

    Args:
        score_bB: any float dtype; without NaN. Columns as long as a multiple of `GROUP` are
            fastest.
        k: at most the length of a column.
    """
    length, batch = score_bB.shape
    groups = length // GROUP
    if length % GROUP or k * 2 > groups:
        return jax.lax.top_k(score_bB.T, k)
    score_gGB = score_bB.reshape(groups, GROUP, batch)
    _, group_Bk = jax.lax.top_k(score_gGB.max(axis=1).T, k)
    group_Bk = jnp.sort(group_Bk, axis=-1)  # in corpus order, as top_k below counts
    candidate_kGB = jnp.take_along_axis(score_gGB, group_Bk.T[:, None], axis=0)
    best_Bk, place_Bk = jax.lax.top_k(candidate_kGB.reshape(k * GROUP, batch).T, k)
    group_Bk = jnp.take_along_axis(group_Bk, place_Bk // GROUP, axis=1)
    return best_Bk, group_Bk * GROUP + place_Bk % GROUP


def _approximately_best(score_bB, k, *, recall):
    return jax.lax.approx_max_k(score_bB.T, k, recall_target=recall)


def bytes_a_device(count: int, width: int, dtype: str, devices: int, block: int = 8192) -> int:
    """Memory that the vectors take of each device, padding included."""
    _, rows = _layout(count, devices, block)
    return rows * (width * {"float32": 4, "bfloat16": 2, "int8": 1}[dtype] + 4 * (dtype == "int8"))
