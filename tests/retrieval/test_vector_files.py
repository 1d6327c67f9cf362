"""Vectors in files of others: bytes written by hand, and FAISS itself where it is installed."""

import struct

import numpy as np
import pytest

from sr1_jax.retrieval.vector_files import read_vectors, write_faiss, write_npy
from sr1_jax.retrieval.vectors import Vectors, as_dtype

ROWS = np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32)


def flat(name=b"IxFI", metric=0, rows=ROWS, numbers=None):
    """A flat index, byte by byte."""
    count, width = rows.shape
    head = name + struct.pack("<i", width) + struct.pack("<q", count)
    head += struct.pack("<q", 1048576) * 2 + b"\x01" + struct.pack("<i", metric)
    return head + struct.pack("<Q", numbers or rows.size) + rows.tobytes()


@pytest.mark.parametrize(("name", "metric"), [(b"IxFI", 0), (b"IxF2", 1)])
def test_reads_flat_indexes(tmp_path, name, metric):
    path = tmp_path / "flat.index"
    path.write_bytes(flat(name, metric))
    vectors = read_vectors(path)
    assert (vectors.count, vectors.width, vectors.dtype) == (2, 3, "float32")
    np.testing.assert_array_equal(vectors.rows(0, 2), ROWS)
    np.testing.assert_array_equal(vectors.float32(1, 2), ROWS[1:])


def test_writes_what_the_format_says(tmp_path):
    write_faiss(tmp_path / "flat.faiss", Vectors.of(ROWS))
    assert (tmp_path / "flat.faiss").read_bytes() == flat()
    assert [path.name for path in tmp_path.iterdir()] == ["flat.faiss"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_npy_there_and_back(tmp_path, dtype):
    vectors = Vectors.of(*as_dtype(ROWS, dtype))
    write_npy(tmp_path / "x.npy", vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), vectors.float32(0, 2))
    np.testing.assert_array_equal(
        read_vectors(tmp_path / "x.npy").rows(0, 2), vectors.float32(0, 2)
    )
    np.testing.assert_allclose(vectors.float32(0, 2), ROWS, atol=0.004)


def test_half_precision_is_read_as_float32(tmp_path):
    np.save(tmp_path / "x.npy", ROWS.astype(np.float16))
    rows = read_vectors(tmp_path / "x.npy").rows(0, 2)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, ROWS, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (flat(b"IxPQ"), "neither .npy nor a flat index .*IxPQ.*write those as .npy"),
        (b"Ix", "neither .npy nor a flat index"),
        (flat()[:-1], "should have 69 bytes, found 68"),
        (flat() + b"x", "should have 69 bytes, found 70"),
        (flat(metric=1), "header contradicts itself"),
        (flat(numbers=5), "header contradicts itself"),
        (flat(rows=ROWS[:0]), "holds no vectors"),
        (flat(b"IxF2", 1, ROWS * 2), "vector 0 has not length 1"),
    ],
)
def test_bad_indexes_are_refused(tmp_path, content, message):
    path = tmp_path / "flat.index"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_vectors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("rows", [ROWS[0], ROWS.astype(int), ROWS[:0]])
def test_bad_arrays_are_refused(tmp_path, rows):
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ValueError, match=r"x\.npy: has shape .* vectors are floats"):
        read_vectors(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"x\.npy: not a readable"):
        read_vectors(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        read_vectors(tmp_path / "none.npy")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_faiss_reads_ours_and_we_read_its(tmp_path):
    faiss = pytest.importorskip("faiss")
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_faiss(tmp_path / "ours.faiss", Vectors.of(rows))
    theirs = faiss.read_index(str(tmp_path / "ours.faiss"))
    assert (theirs.ntotal, theirs.d, theirs.metric_type) == (50, 8, faiss.METRIC_INNER_PRODUCT)
    _, numbers = theirs.search(rows[:5], 3)
    expected = np.argsort(-(rows[:5] @ rows.T), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(numbers, expected)
    for kind in (faiss.IndexFlatIP, faiss.IndexFlatL2):
        index = kind(8)
        index.add(rows)
        faiss.write_index(index, str(tmp_path / "theirs.index"))
        np.testing.assert_array_equal(read_vectors(tmp_path / "theirs.index").rows(0, 50), rows)
