"""The layout of rollouts: equal to the plain forward pass, with a cache in any state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from sr1_jax.models import Decoder, DecoderConfig
from sr1_jax.models.cached_forward import forward_cached, next_token_logits
from sr1_jax.models.serving import (
    Int8,
    KVCache,
    cache_bytes,
    empty_cache,
    quantise,
    serve,
)
from sr1_jax.sharding import make_mesh

CONFIG = DecoderConfig(
    vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff_width=24, qkv_bias=True
)
BEYOND = 99
BATCH = ("data", "fsdp")


def random_model(**changes):
    """A model whose branches, biases and scales are all at work."""
    config = DecoderConfig(**vars(CONFIG) | changes)
    model = Decoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)

    def noisy(x):
        return x + jnp.asarray(rng.normal(size=x.shape, scale=0.2), x.dtype)

    return nnx.merge(nnx.graphdef(model), jax.tree.map(noisy, nnx.state(model)))


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def served(model, mesh, weights="same"):
    return serve(nnx.state(model), config=model.config, mesh=mesh, weights=weights)


def extend(model, params, cache, ids, positions, rows=None):
    config = model.config

    @jax.jit
    def run(params, cache, ids, positions, rows):
        hidden_DBT, cache = forward_cached(config, params, ids, positions, cache, rows)
        flat = hidden_DBT.reshape(hidden_DBT.shape[0], -1)
        return next_token_logits(config, params, flat).T.reshape(*ids.shape, -1), cache

    rows = None if rows is None else jnp.array(rows)
    logits, cache = run(params, cache, jnp.array(ids), jnp.array(positions), rows)
    return np.asarray(logits), cache


def ids_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape)


def plain(model, ids):
    return np.asarray(nnx.jit(lambda m, x: m(x))(model, jnp.asarray(ids)))


@pytest.mark.parametrize(
    "changes", [{}, dict(qk_norm=True), dict(tied_embeddings=False), dict(heads=2)], ids=str
)
def test_cache_equals_no_cache_with_rows_at_different_positions(changes, one_device):
    """Two slots of four prefilled unevenly and padded, then extended in swapped row order."""
    model = random_model(**changes)
    params = served(model, one_device)
    a, b = ids_of(0, 2, 10)
    want_a, want_b = (plain(model, ids[None])[0] for ids in (a, b))
    cache = KVCache.empty(model.config, slots=4, positions=10, block=4)

    ids, positions = [[*a[:3], 5], b[:4]], [[0, 1, 2, BEYOND], [0, 1, 2, 3]]
    got, cache = extend(model, params, cache, ids, positions, rows=[2, 0])
    np.testing.assert_allclose(got[0, :3], want_a[:3], atol=2e-5)
    np.testing.assert_allclose(got[1], want_b[:4], atol=2e-5)

    ids, positions = [b[4:6], a[3:5]], [[4, 5], [3, 4]]
    got, cache = extend(model, params, cache, ids, positions, rows=[0, 2])
    np.testing.assert_allclose(got[0], want_b[4:6], atol=2e-5)
    np.testing.assert_allclose(got[1], want_a[3:5], atol=2e-5)

    # One token for every slot; slots 1 and 3 are idle.
    ids, positions = [[b[6]], [1], [a[5]], [2]], [[6], [BEYOND], [5], [-1]]
    got, cache = extend(model, params, cache, ids, positions)
    np.testing.assert_allclose(got[0, 0], want_b[6], atol=2e-5)
    np.testing.assert_allclose(got[2, 0], want_a[5], atol=2e-5)
    assert np.isfinite(got).all()
    for k_SKNEC, v_SKXE in zip(*cache):
        k_SXKE = np.asarray(k_SKNEC).transpose(0, 2, 4, 1, 3).reshape(4, -1, 2, 4)
        for part in (k_SXKE, np.asarray(v_SKXE).swapaxes(1, 2)):
            assert not part[[1, 3]].any()
            assert not part[0, 7:].any() and part[0, :7].any(axis=(1, 2)).all()
            assert not part[2, 6:].any() and part[2, :6].any(axis=(1, 2)).all()


@pytest.mark.parametrize("outside", [BEYOND, 8, -1])
def test_positions_outside_the_cache_write_nothing(model, one_device, outside):
    ones = jax.tree.map(jnp.ones_like, KVCache.empty(CONFIG, 2, 8, 4))
    _, after = extend(
        model, served(model, one_device), ones, [[1, 2], [3, 4]], [[outside, outside]] * 2
    )
    assert all(np.all(x == 1) for x in jax.tree.leaves(after))


def test_rows_past_the_last_slot_write_nothing(model, one_device):
    ones = jax.tree.map(jnp.ones_like, KVCache.empty(CONFIG, 2, 8, 4))
    _, after = extend(model, served(model, one_device), ones, [[1, 2]], [[0, 1]], rows=[2])
    assert all(np.all(x == 1) for x in jax.tree.leaves(after))


def test_cache_ignores_what_a_former_owner_left_behind(model, one_device):
    """A slot that is taken over holds stale keys at later positions; nobody may see them."""
    ids = ids_of(0, 1, 6)
    stale = jax.tree.map(lambda x: jnp.full_like(x, 3.0), KVCache.empty(CONFIG, 1, 8, 4))
    got, _ = extend(model, served(model, one_device), stale, ids, [range(6)])
    np.testing.assert_allclose(got, plain(model, ids), atol=2e-5)


def test_memory_equals_its_formula():
    cache = KVCache.empty(CONFIG, slots=3, positions=7, block=4)
    want = 2 * 2 * 3 * 8 * 2 * 4 * 4  # keys and values, layers, slots, positions, heads, size
    assert cache_bytes(CONFIG, 3, 7, 4) == want == sum(x.nbytes for x in jax.tree.leaves(cache))
    assert (cache.slots, cache.positions, cache.block) == (3, 8, 4)


def test_int8_rounds_each_output_by_its_own_scale():
    kernel = np.array([[0.5, 100.0, 0.0], [-1.27, 25.4, 0.0]], np.float32)
    values, scale = quantise(jnp.asarray(kernel), (0,))
    np.testing.assert_allclose(scale, [[0.01, 100 / 127, 1.0]], rtol=1e-6)
    assert values.dtype == jnp.int8
    np.testing.assert_array_equal(values, [[50, 127, 0], [-127, 32, 0]])


@pytest.mark.parametrize(("weights", "size", "error"), [("bfloat16", 2, 0.02), ("int8", 1, 0.05)])
def test_smaller_weights_are_close(model, one_device, weights, size, error):
    params = served(model, one_device, weights)
    kernels = [
        weight.values if isinstance(weight, Int8) else weight
        for layer in params.layers
        for weight in (layer.qkv_KJED, layer.o_DKGE, layer.gate_up_2FD, layer.down_DF)
    ]
    assert {x.dtype.itemsize for x in kernels} == {size}
    ids = ids_of(3, 2, 8)
    got, _ = extend(model, params, KVCache.empty(CONFIG, 2, 8, 4), ids, [range(8)] * 2)
    want = plain(model, ids)
    assert 0 < np.abs(got - want).max() < error * np.abs(want).max()


@pytest.mark.parametrize("weights", ["same", "int8"])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_only_the_tensor_axis_splits_weights(model, weights, shape):
    mesh = make_mesh(*shape)
    params = served(model, mesh, weights)
    for leaf in jax.tree.leaves(params):
        names = {name for axis in leaf.sharding.spec if axis for name in np.atleast_1d(axis)}
        assert names <= {"tensor"}
    gate_up = jax.tree.leaves(params.layers[1].gate_up_2FD)[0]
    assert gate_up.sharding.spec == P(None, "tensor")
    cache = empty_cache(CONFIG, 8, 6, mesh)
    assert all(x.sharding.spec == P(BATCH, "tensor") for x in jax.tree.leaves(cache))
    assert empty_cache(CONFIG, 8, 6, mesh).k_SKNEC[0].shape == (8, 2, 1, 4, 32)


def test_heads_that_the_mesh_does_not_divide(model):
    with pytest.raises(ValueError, match=r"qkv_KJED.*kv_heads of size 2.*4 devices"):
        served(model, make_mesh(2, 1, 4))
