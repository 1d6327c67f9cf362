"""Vectors in files of others: NumPy's .npy and the flat indexes of FAISS.

A flat index is its header and all vectors one after the other as float32, written as FAISS's
`write_index` does (faiss/impl/index_write.cpp), all numbers little-endian:

    4 bytes   "IxFI" (inner product), "IxF2" (L2)
    int32     D
    int64     N
    int64     2^20, twice; not used
    uint8     1: trained
    int32     metric, 0 for inner product, 1 for L2
    uint64    N * D, how many numbers follow
    float32   the vectors [N, D]
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from sr1_jax.paths import replacing
from sr1_jax.retrieval.vectors import Vectors

_HEADER = struct.Struct("<4siqqqBi")
_COUNT = struct.Struct("<Q")
_METRICS = {b"IxFI": 0, b"IxF2": 1}
_UNUSED = 1 << 20
_ROWS = 65_536  # looked at or written at a time


def read_vectors(path: Path) -> Vectors:
    """Vectors of a file, mapped: nothing is read before it is asked for.

    Args:
        path: `.npy`, float16, float32 or float64 of two axes; else a flat index of FAISS. One that
            ranks by L2 is taken where all vectors have length 1: inner products rank alike then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, is cut short, or ranks otherwise than by inner product.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .npy file or a flat index of FAISS.")
    if path.suffix == ".npy":
        return _read_npy(path)
    with open(path, "rb") as file:
        head = file.read(_HEADER.size + _COUNT.size)
    if head[:4] not in _METRICS or len(head) < _HEADER.size + _COUNT.size:
        raise ValueError(
            f"{path}: neither .npy nor a flat index of FAISS (IndexFlatIP, IndexFlatL2), but "
            f"{head[:4]!r}. Other indexes keep no vectors as they were; write those as .npy."
        )
    name, width, count, _, _, _, metric = _HEADER.unpack_from(head)
    (numbers,) = _COUNT.unpack_from(head, _HEADER.size)
    size = len(head) + 4 * numbers
    if metric != _METRICS[name] or width < 1 or count < 0 or numbers != count * width:
        raise ValueError(f"{path}: its header contradicts itself; get the file again.")
    if path.stat().st_size != size:
        raise ValueError(
            f"{path}: should have {size} bytes, found {path.stat().st_size}; get the file again."
        )
    if not count:
        raise ValueError(f"{path}: holds no vectors.")
    values_ND = np.memmap(path, np.dtype("<f4"), "r", offset=len(head), shape=(count, width))
    vectors = Vectors.of(values_ND)
    if name == b"IxF2":
        _check_lengths(path, vectors)
    return vectors


def _read_npy(path: Path) -> Vectors:
    try:
        values_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({error}).") from error
    if values_ND.ndim != 2 or values_ND.dtype.kind != "f" or not values_ND.size:
        raise ValueError(
            f"{path}: has shape {values_ND.shape} and dtype {values_ND.dtype}; vectors are floats "
            "[passages, width]."
        )
    return Vectors(
        *values_ND.shape,
        "float32",
        lambda first, last: np.asarray(values_ND[first:last], np.float32),
    )


def _check_lengths(path: Path, vectors: Vectors) -> None:
    for first in range(0, vectors.count, _ROWS):
        rows_nD = vectors.float32(first, min(first + _ROWS, vectors.count))
        off = np.abs(np.linalg.norm(rows_nD, axis=1) - 1) > 1e-3
        if off.any():
            raise ValueError(
                f"{path}: ranks by L2, and vector {first + int(off.argmax())} has not length 1, so "
                "that inner products would rank otherwise; write an index by inner product."
            )


def write_npy(path: Path, vectors: Vectors) -> None:
    """Writes vectors as float32 .npy; the file appears when it is whole."""
    with replacing(path) as part:
        shape = (vectors.count, vectors.width)
        mapped = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        for first in range(0, vectors.count, _ROWS):
            last = min(first + _ROWS, vectors.count)
            mapped[first:last] = vectors.float32(first, last)
        mapped.flush()


def write_faiss(path: Path, vectors: Vectors) -> None:
    """Writes vectors as FAISS's IndexFlatIP; the file appears when it is whole."""
    with replacing(path) as part, open(part, "wb") as file:
        header = b"IxFI", vectors.width, vectors.count, _UNUSED, _UNUSED, 1, _METRICS[b"IxFI"]
        file.write(_HEADER.pack(*header))
        file.write(_COUNT.pack(vectors.count * vectors.width))
        for first in range(0, vectors.count, _ROWS):
            rows_nD = vectors.float32(first, min(first + _ROWS, vectors.count))
            file.write(np.ascontiguousarray(rows_nD, "<f4").data)
