"""Kernels of attention against the plain one, and which is chosen where."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.models import attention as module
from sr1_jax.models.attention import (
    _library_attention,
    attention,
    causal_by_matmul,
)
from sr1_jax.models.splash import block_of, splash_attention
from sr1_jax.sharding import compute_on, make_mesh


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def grouped(batch, length, heads, kv_heads, size):
    kv = (batch, length, kv_heads, size)
    return draw((batch, length, heads, size), kv, kv)


def with_gradients(attend, inputs, weight):
    """Values, and gradients of their weighted sum."""

    def loss(*inputs):
        out = attend(*inputs)
        return jnp.sum(out * weight), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return [out, *grads]


INTERPRETED = functools.partial(splash_attention, interpret=True)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "size", "shape"),
    [
        (37, 4, 2, 64, (1, 1, 1)),  # less than a block; two heads share one
        (130, 2, 1, 128, (2, 1, 1)),  # two lanes, the second nearly empty; rows split
        (40, 4, 2, 64, (1, 2, 2)),  # rows and heads split
    ],
)
def test_splash_equals_plain_attention(monkeypatch, length, heads, kv_heads, size, shape):
    inputs = grouped(2, length, heads, kv_heads, size)
    (weight,) = draw(inputs[0].shape)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    monkeypatch.setitem(module._BY_PLATFORM, "cpu", INTERPRETED)
    with compute_on(mesh):
        got = with_gradients(attention, inputs, weight)
    for a, b in zip(got, with_gradients(causal_by_matmul, inputs, weight), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("attend", "shape"),
    [
        (causal_by_matmul, (1, 1, 1)),
        (_library_attention, (1, 2, 1)),
        (INTERPRETED, (2, 1, 2)),
    ],
    ids=["plain", "library", "splash"],
)
def test_a_packed_sequence_attends_as_if_it_were_alone(monkeypatch, attend, shape):
    """Values and gradients; the lengths are those of sequences in two rows, and of padding."""
    rows = ([60, 1, 71, 18], [149, 1])
    inputs = grouped(2, 150, 4, 2, 64)
    (weight,) = draw(inputs[0].shape)
    sequence_BT = np.stack([np.repeat(np.arange(len(sizes)), sizes) for sizes in rows])
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    monkeypatch.setitem(module._BY_PLATFORM, "cpu", attend)
    with compute_on(mesh):
        got = with_gradients(
            lambda *inputs: attention(*inputs, jnp.asarray(sequence_BT, "int32")), inputs, weight
        )
    for row, sizes in enumerate(rows):
        stops = np.cumsum(sizes)
        for start, stop in zip(stops - sizes, stops):
            alone = [x[row : row + 1, start:stop] for x in (*inputs, weight)]
            want = with_gradients(causal_by_matmul, alone[:3], alone[3])
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a[row : row + 1, start:stop], b, atol=2e-5)


@pytest.mark.parametrize("packed", ["no", "sequences", "trees"])
def test_plain_products_in_blocks_of_queries(packed):
    """Blocks of 4, 4 and 3 queries, and their gradients, as the library has them in one piece."""
    inputs, (weight,) = grouped(2, 11, 4, 2, 8), draw((2, 11, 4, 8))
    rng = np.random.default_rng(3)
    more, kind = (), {}
    if packed == "sequences":
        more = (np.sort(rng.integers(0, 3, (2, 11)), axis=1),)
    elif packed == "trees":
        more = (np.maximum(rng.integers(1, 12, (2, 11)), np.arange(1, 12)),)
        kind = dict(may_see=module._before_its_end)
    whole = functools.partial(_library_attention, **kind)
    blocks = functools.partial(causal_by_matmul, most_queries=5, **kind)
    want = with_gradients(lambda *x: whole(*x, *more), inputs, weight)
    got = with_gradients(lambda *x: blocks(*x, *more), inputs, weight)
    for got_one, want_one in zip(got, want, strict=True):
        np.testing.assert_allclose(got_one, want_one, atol=2e-5)


def test_blocks_hold_the_sequence_with_little_padding():
    assert [block_of(n) for n in (1, 128, 129, 512)] == [128, 128, 256, 512]
    assert [block_of(n) for n in (513, 700, 1024, 4096, 4097)] == [384, 384, 512, 512, 384]
    for length in range(513, 5000):
        block = block_of(length)
        assert block % 128 == 0 and -length % block < 384


def test_the_kernel_is_chosen_by_the_devices_of_the_mesh(monkeypatch):
    """A program for TPUs may be compiled on a host without one."""
    chosen = []

    def shard_map(attend, *, mesh, in_specs, out_specs, check_vma):
        chosen.append(attend)
        return attend

    monkeypatch.setattr(jax, "shard_map", shard_map)
    inputs = grouped(1, 5, 2, 1, 8)
    for platform in ("tpu", "cpu", "rocm"):
        device = types.SimpleNamespace(platform=platform)
        with compute_on(types.SimpleNamespace(devices=np.array([device]))):
            jax.eval_shape(lambda *x: attention(*x), *inputs)
    assert chosen[:2] == [splash_attention, causal_by_matmul]
    np.testing.assert_allclose(chosen[2](*inputs), attention(*inputs), atol=1e-6)
    assert len(chosen) == 3
    # The kernel knows no trees.
    device = types.SimpleNamespace(platform="tpu")
    ends = np.full((1, 5), 5, np.int32)
    with compute_on(types.SimpleNamespace(devices=np.array([device]))):
        jax.eval_shape(lambda *x: attention(*x, end_BT=ends), *inputs)
    np.testing.assert_allclose(chosen[3](*inputs, ends), attention(*inputs), atol=1e-6)
