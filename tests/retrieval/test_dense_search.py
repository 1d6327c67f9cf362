"""Search over vectors on devices: brute force, order, dtypes, and the groups of a block."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr1_jax.retrieval.dense_search import GROUP, Layout, VectorSearch, best_of, merged
from sr1_jax.retrieval.vectors import Vectors, as_dtype
from sr1_jax.sharding import make_mesh

WIDTH = 24


def make(count, width=WIDTH, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def mesh_of(devices):
    # All axes have devices, so that their order counts.
    shape = {1: (1, 1, 1), 2: (1, 2, 1), 8: (2, 2, 2)}[devices]
    return make_mesh(*shape, devices=jax.devices()[:devices])


def brute_force(vector_ND, query_BD, k):
    """Numbers of the k largest inner products in float64, equal ones in corpus order."""
    score_BN = query_BD.astype(np.float64) @ vector_ND.astype(np.float64).T
    order_BN = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
    return order_BN, np.take_along_axis(score_BN, order_BN, axis=1)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_equals_brute_force(devices, count):
    vector_ND, query_BD = make(count), make(11, seed=1)
    search = VectorSearch(Vectors.of(vector_ND), mesh_of(devices), block=128, batches=(2, 8))
    for k in (1, 3, 10, 2000):
        expected, scores = brute_force(vector_ND, query_BD, k)
        found = search(query_BD, k)
        np.testing.assert_allclose(found.score_Bk, scores, atol=1e-6)
        # Further down, scores are nearer to each other than float32 tells apart.
        np.testing.assert_array_equal(found.number_Bk[:, :10], expected[:, :10])
        assert all(len(set(row)) == min(k, count) for row in found.number_Bk.tolist())


@pytest.mark.parametrize("devices", [1, 8])
def test_equal_scores_stay_in_corpus_order(devices):
    # Whole numbers: products are exact, and many are equal, of both signs of zero too.
    rng = np.random.default_rng(0)
    vector_ND = rng.integers(-1, 2, (3000, 4)).astype(np.float32)
    query_BD = rng.integers(-1, 2, (9, 4)).astype(np.float32)
    search = VectorSearch(Vectors.of(vector_ND), mesh_of(devices), block=1024)
    for k in (1, 5, 100):
        expected, _ = brute_force(vector_ND, query_BD, k)
        np.testing.assert_array_equal(search(query_BD, k).number_Bk, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_are_searched_as_they_are(dtype):
    vector_ND, query_BD = make(500), make(6, seed=1)
    values, scales = as_dtype(vector_ND, dtype)
    vectors = Vectors.of(values, scales)
    rounded_BD = query_BD.astype(ml_dtypes.bfloat16).astype(np.float32)
    expected, scores = brute_force(vectors.float32(0, 500), rounded_BD, 10)
    found = VectorSearch(vectors, mesh_of(8), block=64)(query_BD, 10)
    np.testing.assert_allclose(found.score_Bk, scores, atol=1e-5)
    assert np.mean(found.number_Bk == expected) > 0.95  # equal but for nearly equal scores


def test_int8_is_off_by_half_a_step():
    vector_ND = make(200)
    vector_ND[3] = 0
    values, scale_N = as_dtype(vector_ND, "int8")
    assert values.dtype == np.int8 and abs(values).max() == 127
    assert not values[3].any() and scale_N[3] == 0
    off = np.abs(values * scale_N[:, None] - vector_ND).max(axis=1)
    assert (off <= scale_N / 2 + 1e-7).all()


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.97), ("int8", 0.97)])
def test_recall_beside_float32(dtype, least):
    """Of clustered vectors, as those of texts are: the share of the ten best that is kept."""
    rng = np.random.default_rng(0)
    centres = make(50, 96)
    vector_ND = centres[rng.integers(0, 50, 4000)] + 0.05 * rng.normal(size=(4000, 96))
    query_BD = centres[rng.integers(0, 50, 64)] + 0.05 * rng.normal(size=(64, 96))
    vector_ND, query_BD = vector_ND.astype(np.float32), query_BD.astype(np.float32)
    exact, _ = brute_force(vector_ND, query_BD, 10)
    found = VectorSearch(Vectors.of(*as_dtype(vector_ND, dtype)), mesh_of(1))(query_BD, 10)
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.number_Bk.tolist())]
    assert np.mean(kept) > least


def test_approximate_is_exact_on_cpus():
    vector_ND, query_BD = make(900), make(5, seed=1)
    search = VectorSearch(Vectors.of(vector_ND), mesh_of(2), block=128, approximate=True)
    np.testing.assert_array_equal(
        search(query_BD, 7).number_Bk, brute_force(vector_ND, query_BD, 7)[0]
    )


def test_no_query_and_the_shapes_that_are_compiled():
    search = VectorSearch(Vectors.of(make(300)), mesh_of(2), block=64, batches=(1, 4))
    assert search(make(1)[:0], 3).number_Bk.shape == (0, 3)
    for count in (1, 2, 3, 4, 5, 9):
        for k in (1, 3, 8):
            assert search(make(count), k).number_Bk.shape == (count, k)
    assert search._program._cache_size() == 2  # a batch each; any k up to 8 is one program


def test_each_device_reads_its_own_rows():
    vector_ND, asked = make(1000), []
    vectors = Vectors(1000, WIDTH, "float32", lambda a, b: asked.append((a, b)) or vector_ND[a:b])
    VectorSearch(vectors, mesh_of(8), block=64)
    assert sorted(asked) == [(i * 128, min(1000, i * 128 + 128)) for i in range(8)]


@pytest.mark.parametrize("count", [1, 255, 257, 1000])
def test_words_of_four_bytes_find_the_same(monkeypatch, count):
    """As TPUs keep int8."""
    vectors = Vectors.of(*as_dtype(make(count, seed=4), "int8"))
    query_BD = make(6, seed=5)
    want = VectorSearch(vectors, mesh_of(2), block=256, batches=(8,))(query_BD, 9)
    split = Layout.split
    monkeypatch.setattr(
        Layout, "of", lambda count, dtype, mesh, block: split(count, mesh.size, block, parts=4)
    )
    packed = VectorSearch(vectors, mesh_of(2), block=256, batches=(8,))
    assert (
        packed._values.dtype == jnp.int32
        and packed._values.nbytes == packed._layout.rows * 2 * WIDTH
    )
    found = packed(query_BD, 9)
    np.testing.assert_array_equal(found.number_Bk, want.number_Bk)
    np.testing.assert_allclose(found.score_Bk, want.score_Bk, rtol=1e-6)


scores = st.integers(-3, 3) | st.sampled_from([-jnp.inf])


@settings(max_examples=30)
@given(st.data())
def test_groups_give_the_best_of_a_block(data):
    """Against a sort; few values, so that many are equal within groups and across them."""
    groups = data.draw(st.sampled_from([2, 6, 16]))
    seed = data.draw(st.integers(0, 2**31))
    high = data.draw(st.integers(1, 6))
    k = data.draw(st.sampled_from([1, 2, 3, 8, 33]))
    score_Bb = np.random.default_rng(seed).integers(0, high, (3, groups * GROUP)).astype(np.float32)
    score_Bb[1, data.draw(st.integers(0, groups * GROUP - 1)) :] = -np.inf
    value_Bk, place_Bk = best_of(jnp.asarray(score_Bb.T), k)
    expected = np.argsort(-score_Bb, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(place_Bk, expected)
    np.testing.assert_array_equal(value_Bk, np.take_along_axis(score_Bb, expected, axis=1))


@settings(max_examples=50)
@given(
    st.lists(st.lists(scores, min_size=4, max_size=4), min_size=1, max_size=5),
    st.integers(1, 20),
)
def test_merging_equals_sorting_all(parts, k):
    score_PN = np.array(parts, np.float32)
    number_PN = np.arange(score_PN.size).reshape(score_PN.shape)
    order = np.argsort(-score_PN, axis=1, kind="stable")
    found = merged(
        np.take_along_axis(score_PN, order, axis=1)[:, None],
        np.take_along_axis(number_PN, order, axis=1)[:, None],
        k,
    )
    expected = np.argsort(-score_PN.ravel(), kind="stable")[:k]
    np.testing.assert_array_equal(found.number_Bk[0], expected)
    np.testing.assert_array_equal(found.score_Bk[0], score_PN.ravel()[expected])
