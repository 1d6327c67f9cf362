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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.retrieval.vectors import Vectors
from sr1_jax.sharding import MESH_AXES

GROUP = 64  # neighbours that one maximum stands for
_BLOCKS = {"cpu": 8192, "tpu": 32_768}
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
        block: vectors that a device multiplies at a time, at most; 0: as suits the devices.
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
        block: int = 0,
        approximate: bool = False,
        recall: float = 0.95,
        batches: tuple[int, ...] = (1, 8, 16, 32, 64, 256),
    ):
        self.count, self.width, self.dtype = vectors.count, vectors.width, vectors.dtype
        self._batches = batches
        self._layout = layout = Layout.of(vectors.count, vectors.dtype, mesh, block)
        rows = vectors.rows
        if vectors.dtype == "bfloat16" and mesh.devices.flat[0].platform == "cpu":
            # As bits: XLA's CPU backend would convert all of a bfloat16 array in every search.
            rows = _bits_of(vectors.rows)
        values, scales = layout.shapes(vectors.width, vectors.dtype, mesh)
        pack = layout.pack if layout.parts > 1 else None
        self._values = _placed(rows, vectors.count, layout, values, pack)
        self._scales = None
        if vectors.scales is not None:
            self._scales = _placed(vectors.scales, vectors.count, layout, scales)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._program = search_program(
            mesh, vectors.count, layout, approximate=approximate, recall=recall
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
        more = padded_k(k, self._layout)
        found = self._program(self._values, self._scales, queries, k=more)
        score_PBk, number_PBk = (np.asarray(x)[:, :count] for x in found)
        return merged(score_PBk, number_PBk, k)


class Layout(NamedTuple):
    """How a device keeps its vectors.

    Attributes:
        block: vectors that are multiplied at a time.
        rows: all of a device, those that pad its last block included.
        parts: of a block, each of which is looked through by itself: 4 where a word of 32 bits
            holds a number of int8 of each of them, and 1 elsewhere. A TPU reads words in tiles of 8
            rows, as it does the products; bytes it would read in tiles of 32, which a product does
            not take: all vectors would be laid out anew for each block.
    """

    block: int
    rows: int
    parts: int = 1

    @classmethod
    def of(cls, count: int, dtype: str, mesh: Mesh, block: int = 0) -> Layout:
        """The layout of `count` vectors on the devices of a mesh; block: see `VectorSearch`."""
        platform = mesh.devices.flat[0].platform
        parts = 4 if dtype == "int8" and platform == "tpu" else 1
        block = block or parts * _BLOCKS.get(platform, _BLOCKS["tpu"])
        return cls.split(count, mesh.size, block, parts)

    @classmethod
    def split(cls, count: int, devices: int, block: int, parts: int = 1) -> Layout:
        """That of so many devices, in blocks of at most about `block`."""
        share, unit = -(-count // devices), GROUP * parts
        block = -(-min(block, share) // unit) * unit
        return cls(block, -(-share // block) * block, parts)

    def pack(self, values_nD: np.ndarray) -> np.ndarray:
        """int8 [n, D] as words, int32 [n / 4, D]: byte j of row i of a block is row i of its part
        j."""
        blocks = values_nD.reshape(-1, self.parts, self.block // self.parts, values_nD.shape[1])
        bytes_last = np.ascontiguousarray(np.moveaxis(blocks, 1, -1))
        return bytes_last.view("<i4").reshape(-1, values_nD.shape[1])

    def shapes(self, width: int, dtype: str, mesh: Mesh) -> tuple[Any, Any]:
        """Values and scales of all devices of a mesh: `jax.ShapeDtypeStruct`s, or None."""
        where = NamedSharding(mesh, _ROWS)
        rows = self.rows * mesh.size

        def shape(dtype: Any, *dims: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(dims, dtype, sharding=where)

        kept = jnp.int32 if self.parts > 1 else jnp.dtype(dtype)
        scales = shape(jnp.float32, rows) if dtype == "int8" else None
        return shape(kept, rows // self.parts, width), scales


def search_program(
    mesh: Mesh, count: int, layout: Layout, *, approximate: bool = False, recall: float = 0.95
) -> Any:
    """The jitted search of `count` vectors on a mesh, called with values and scales of
    `Layout.shapes`, queries [B, D] and k. The arguments are those of `VectorSearch`."""
    best = functools.partial(_approximately_best, recall=recall) if approximate else best_of
    program = functools.partial(_search, mesh=mesh, layout=layout, count=count, best=best)
    return jax.jit(program, static_argnames=("k",))


def padded_k(k: int, layout: Layout) -> int:
    """Passages that a program looks for when k are wanted: few programs serve any k."""
    return min(max(_LEAST_K, 1 << (k - 1).bit_length()), layout.rows)


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


def _placed(
    read: Callable[[int, int], np.ndarray],
    count: int,
    layout: Layout,
    kept: jax.ShapeDtypeStruct,
    pack: Callable[[np.ndarray], np.ndarray] | None = None,
) -> jax.Array:
    """Rows on the devices, zeros past the last; each is read once, for the device that keeps it.

    Args:
        read: (first, last) gives those rows.
        count: of all rows.
        layout: of a device's.
        kept: of `Layout.shapes`.
        pack: makes of a device's rows what it keeps; None: they are kept as they are.
    """

    def part(index):
        rows = layout.rows
        first = index[0].indices(kept.shape[0])[0] * (layout.parts if pack else 1)
        values = np.asarray(read(min(first, count), min(first + rows, count)))
        if missing := rows - len(values):
            values = np.pad(values, ((0, missing), *[(0, 0)] * (values.ndim - 1)))
        return values if pack is None else pack(values)

    return jax.make_array_from_callback(kept.shape, kept.sharding, part)


def _bits_of(rows):
    return lambda first, last: np.asarray(rows(first, last)).view(np.uint16)


def _search(values_ND, scale_N, query_BD, *, k, mesh, layout, count, best):
    """What each device finds among its vectors: scores and numbers [devices, B, k]."""
    one_device = functools.partial(
        _search_device, k=k, mesh=mesh, layout=layout, count=count, best=best
    )
    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(_ROWS, None if scale_N is None else _ROWS, PartitionSpec()),
        out_specs=(_ROWS, _ROWS),
        check_vma=False,
    )(values_ND, scale_N, query_BD)


def _search_device(values_nD, scale_n, query_BD, *, k, mesh, layout, count, best):
    block, rows, parts = layout
    first = jax.lax.axis_index(MESH_AXES) * rows
    platform = mesh.devices.flat[0].platform
    size = block // parts

    def one(_, start):
        values = jax.lax.dynamic_slice_in_dim(values_nD, start // parts, size)
        found = []
        for part in range(parts):
            begin = start + part * size
            score_bB = _scores(
                values if parts == 1 else _byte(values, part),
                None if scale_n is None else jax.lax.dynamic_slice_in_dim(scale_n, begin, size),
                query_BD,
                platform,
            )
            real_b = first + begin + jnp.arange(size) < count
            score_bB = jnp.where(real_b[:, None], score_bB, -jnp.inf)
            score_Bk, place_Bk = best(score_bB, min(k, size))
            found.append((score_Bk, begin + place_Bk))
        return None, tuple(jnp.concatenate(each, axis=1) for each in zip(*found))

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
    if platform == "cpu" and len(query_BD) == 1:
        # XLA's product of a matrix and a vector uses one core, and copies the matrix first.
        score_bB = jnp.sum(operands[1] * operands[0], axis=1, keepdims=True)
    else:
        score_bB = jnp.einsum(
            "bd,nd->nb", *operands, precision=precision, preferred_element_type=jnp.float32
        )
    if scale_b is not None:
        score_bB = score_bB * scale_b[:, None]
    # top_k orders -0.0 below 0.0.
    return jnp.where(score_bB == 0, 0.0, score_bB)


def _byte(word_nD: jax.Array, number: int) -> jax.Array:
    """A byte of each word, with its sign, in bfloat16: the lowest is number 0."""
    return ((word_nD << (24 - 8 * number)) >> 24).astype(jnp.float32).astype(jnp.bfloat16)


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
