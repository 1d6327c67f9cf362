"""The TPU's attention over a KV cache against the plain one, in the kernel's interpreter."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from sr1_jax.models import attention, cached_forward, decode_kernel, serving
from sr1_jax.models.attention import attend_with_one_query, one_query_attention
from sr1_jax.models.cache_rows import Rows, own_parts, rows_of_heads, spread_queries, to_rows
from sr1_jax.models.cached_forward import forward_cached
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.serving import KVCache, cache_shape, serving_params
from sr1_jax.sharding import collectives, compute_on, for_own_heads, make_mesh

BLOCK, BLOCKS = 16, 3
POSITIONS = (0, 15, 16, 40, 47, 48, -1)  # of slots; the last two are idle


@pytest.fixture
def as_on_tpu(monkeypatch):
    """What is traced for this host's devices is chosen as for TPUs, and interpreted."""
    choose_as_on_tpu(monkeypatch)
    # Two cores, since slots are shared out to two: one after the other they would wait for ever.
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(num_cores_or_threads=2)):
        yield


def choose_as_on_tpu(monkeypatch):
    for module in (attention, cached_forward, collectives):
        monkeypatch.setattr(module, "current_platform", lambda: "tpu")


def cache_of(rng, heads, dtype):
    shape = (len(POSITIONS), heads, BLOCKS, 128, BLOCK)
    k_BKNEC = jnp.asarray(rng.normal(size=shape), dtype)
    v_BKXE = jnp.asarray(rng.normal(size=(*shape[:2], BLOCKS * BLOCK, 128)), dtype)
    return k_BKNEC, v_BKXE


@pytest.mark.parametrize(
    ("dtype", "heads", "group", "tensor", "cores"),
    [
        (jnp.bfloat16, 1, 7, 1, 1),  # as of Qwen2.5, tensor as large as it may be
        (jnp.bfloat16, 2, 8, 1, 2),  # whole registers of queries; two cores
        (jnp.bfloat16, 4, 2, 2, 1),  # heads split
        (jnp.float32, 2, 2, 2, 1),  # the kernel would round them
    ],
)
def test_what_is_filled_is_attended_to(as_on_tpu, monkeypatch, dtype, heads, group, tensor, cores):
    rng = np.random.default_rng(0)
    k_BKNEC, v_BKXE = cache_of(rng, heads, dtype)
    q_BKGE = jnp.asarray(rng.normal(size=(len(POSITIONS), heads, group, 128)), dtype)
    position_B = jnp.array(POSITIONS)
    mesh = make_mesh(1, 1, tensor, devices=jax.devices()[:tensor])
    ran = []

    def attend_to_filled(*arguments, **settings):
        ran.append(arguments[0].shape)
        return real(*arguments, **settings | {"cores": cores})

    real = decode_kernel.attend_to_filled
    monkeypatch.setattr(decode_kernel, "attend_to_filled", attend_to_filled)

    @jax.jit
    def run(*arguments):
        with compute_on(mesh):
            one = functools.partial(one_query_attention, head_dim=128)
            function = for_own_heads(one, (1, 1, 1, None), 1)
            return jax.shard_map(
                function,
                mesh=mesh,
                in_specs=P(),
                out_specs=P(),
                axis_names={"data", "fsdp"},
                check_vma=False,
            )(*arguments)

    got = run(q_BKGE, k_BKNEC, v_BKXE, position_B)
    want = attend_with_one_query(
        *(x.astype(jnp.float32) for x in (q_BKGE, k_BKNEC, v_BKXE)), position_B
    )
    kernel = dtype == jnp.bfloat16
    assert ran == ([(len(POSITIONS), heads // tensor, group, 128)] if kernel else [])
    assert got.dtype == dtype
    busy = slice(0, -2)
    np.testing.assert_allclose(got[busy], want[busy], atol=2e-2 if kernel else 1e-5)
    if kernel:
        assert not np.any(np.asarray(got[-2:], np.float32))


def test_what_is_not_filled_is_not_read(as_on_tpu, monkeypatch):
    """NaN beyond the block of the last token reaches nobody; nor does an idle slot's."""
    rng = np.random.default_rng(0)
    k_BKNEC, v_BKXE = cache_of(rng, 1, jnp.bfloat16)
    q_BKGE = jnp.asarray(rng.normal(size=(len(POSITIONS), 1, 2, 128)), jnp.bfloat16)
    position_B = jnp.array(POSITIONS)
    monkeypatch.setattr(decode_kernel, "_POSITIONS", BLOCK)  # all three pages at a time otherwise
    used_B = np.asarray(POSITIONS)[:, None] // BLOCK
    idle_B1 = (np.asarray(POSITIONS)[:, None] < 0) | (np.asarray(POSITIONS)[:, None] >= 48)
    beyond_BN = (np.arange(BLOCKS)[None] > used_B) | idle_B1
    spoilt_k = jnp.where(beyond_BN[:, None, :, None, None], jnp.nan, k_BKNEC)
    spoilt_v = jnp.where(np.repeat(beyond_BN, BLOCK, axis=1)[:, None, :, None], jnp.nan, v_BKXE)
    run = functools.partial(decode_kernel.attend_to_filled, head_dim=128)
    got = run(q_BKGE, spoilt_k, spoilt_v, position_B)
    np.testing.assert_array_equal(got, run(q_BKGE, k_BKNEC, v_BKXE, position_B))
    assert np.all(np.isfinite(np.asarray(got, np.float32)))


def test_pages_at_a_time_divide_those_of_a_slot():
    found = [decode_kernel.pages_at_a_time(*x) for x in ((32, 128), (6, 128), (7, 128), (8, 1024))]
    assert found == [4, 3, 1, 1]


def test_small_heads_share_rows_of_whole_registers():
    assert rows_of_heads(2, 64) == Rows(2, 128)
    assert rows_of_heads(3, 64) == Rows(1, 128)
    assert rows_of_heads(8, 32) == Rows(4, 128)
    assert rows_of_heads(4, 128) == Rows(1, 128)
    assert rows_of_heads(1, 96) == Rows(1, 128)
    assert rows_of_heads(2, 256) == Rows(1, 256)


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (2, 4), (2, 6)])
def test_queries_spread_over_rows_see_their_own_head(rows, width):
    """Two heads of four numbers: in one row, in two, in two with padding."""
    rng = np.random.default_rng(0)
    q_BKGTE = jnp.asarray(rng.normal(size=(2, 2, 3, 5, 4)), jnp.float32)
    k_BTKE = jnp.asarray(rng.normal(size=(2, 7, 2, 4)), jnp.float32)
    spread = spread_queries(q_BKGTE, rows, width)
    scores = jnp.einsum("brqtw,bxrw->brqtx", spread, to_rows(k_BTKE, rows, width))
    want = jnp.einsum("bkgte,bxke->bkgtx", q_BKGTE, k_BTKE)
    np.testing.assert_allclose(scores.reshape(want.shape), want, atol=1e-5)
    mixed = jnp.einsum("brqtx,bxrw->brqtw", scores, to_rows(k_BTKE, rows, width))
    want = jnp.einsum("bkgtx,bxke->bkgte", want, k_BTKE)
    np.testing.assert_allclose(own_parts(mixed, 2, 4), want, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tensor", "dtype"),
    [
        (4, 2, 64, 1, "bfloat16"),  # two heads share a row
        (4, 2, 64, 2, "bfloat16"),  # a device has one of them: a row half empty
        (2, 1, 128, 1, "bfloat16"),  # a row a head
        (4, 4, 32, 2, "float32"),  # rows split
        (3, 3, 32, 1, "float32"),  # an odd number of heads
    ],
)
def test_a_tpus_cache_gives_what_a_cpus_gives(
    monkeypatch, heads, kv_heads, head_dim, tensor, dtype
):
    """A prompt, then a token a slot; one slot is idle."""
    config = DecoderConfig(
        vocab_size=24, width=16, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        ff_width=24, dtype=dtype,
    )  # fmt: skip
    model = Decoder(config, rngs=nnx.Rngs(0))
    params = serving_params(model.config, nnx.state(model))
    mesh = make_mesh(1, 1, tensor, devices=jax.devices()[:tensor])
    prompt_BT = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    at_BT = jnp.array([[0, 1, 2, 3], [0, 1, 999, 999], [0, 1, 2, 3]])

    def run(cache):
        def part(cache):
            with compute_on(mesh):
                rows = jnp.arange(3)
                first, cache = forward_cached(config, params, prompt_BT, at_BT, cache, rows)
                second, cache = forward_cached(
                    config, params, jnp.array([[3], [4], [5]]), jnp.array([[4], [2], [999]]), cache
                )
            return first, second

        split = dict(axis_names={"data", "fsdp"}, check_vma=False)
        return jax.shard_map(part, mesh=mesh, in_specs=P(), out_specs=P(), **split)(cache)

    want = jax.jit(run)(KVCache.empty(config, 3, 40))
    monkeypatch.setattr(serving, "_BLOCK", 16)
    device = types.SimpleNamespace(platform="tpu")
    tpus = types.SimpleNamespace(devices=np.array([device]), shape=mesh.shape)
    cache = KVCache.empty(config, 3, 40, **cache_shape(config, tpus))
    choose_as_on_tpu(monkeypatch)
    with pltpu.force_tpu_interpret_mode():
        got = jax.jit(run)(cache)
    tolerance = 0.1 if dtype == "bfloat16" else 1e-5
    for a, b in zip(got, want, strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a[:, 0], b[:, 0], atol=tolerance)
        np.testing.assert_allclose(a[:, 1, :2], b[:, 1, :2], atol=tolerance)
