"""Kernels of attention against the plain one, and which is chosen where."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.models import attention as module
from sr1_jax.models.attention import (
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


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "size", "shape"),
    [
        (37, 4, 2, 64, (1, 1, 1)),  # less than a block; two heads share one
        (130, 2, 1, 128, (2, 1, 1)),  # two lanes, the second nearly empty; rows split
        (40, 4, 2, 64, (1, 2, 2)),  # rows and heads split
    ],
)
def test_splash_equals_plain_attention(monkeypatch, length, heads, kv_heads, size, shape):
    """Values and gradients, in the kernel's interpreter."""
    inputs = grouped(2, length, heads, kv_heads, size)
    (weight,) = draw(inputs[0].shape)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])

    def run(attend):
        def loss(*inputs):
            out = attend(*inputs)
            return jnp.sum(out * weight), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
        return [out, *grads]

    monkeypatch.setitem(
        module._BY_PLATFORM, "cpu", functools.partial(splash_attention, interpret=True)
    )
    with compute_on(mesh):
        got = run(attention)
    for a, b in zip(got, run(causal_by_matmul), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


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
