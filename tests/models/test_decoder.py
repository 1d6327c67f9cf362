"""The decoder against NumPy, and its cached path against its plain path."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.models import Decoder, DecoderConfig, ValueModel, parameter_count
from sr1_jax.models.attention import (
    attend_in_chunks,
    attend_over_cache,
    attend_with_one_query,
    attention,
)
from sr1_jax.models.norm import rms_norm
from sr1_jax.models.packed import PackedSequences
from sr1_jax.models.rotary import rope_angles, rotate
from sr1_jax.sharding import compute_on, make_mesh

CONFIG = DecoderConfig(
    vocab_size=31,
    width=24,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ff_width=20,
    qkv_bias=True,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def model():
    """Random in every parameter: in biases of zero and scales of one mistakes do not show."""
    built = nnx.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))
    nnx.update(built, jax.tree.map(lambda x: 0.3 * x, _noise(nnx.state(built))))
    return built


@nnx.jit
def _logits(model, ids):
    return model(ids)


def _noise(state, seed=0):
    """Standard normal numbers in the shapes of a state."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape), x.dtype), state)


def _moved(state, direction, step):
    return jax.tree.map(lambda x, d: x + step * d, state, direction)


def _ids(seed, *shape):
    return jnp.array(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape))


def _numpy_attention(q, k, v, mask):
    batch, length, heads, width = q.shape
    group = heads // k.shape[2]
    out = np.zeros_like(q)
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                seen = np.flatnonzero(mask[b, t])
                scores = k[b, seen, h // group] @ q[b, t, h] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ v[b, seen, h // group] / weights.sum()
    return out


def test_attention_equals_numpy_loop():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 4, 6)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 5, 2, 6)).astype(np.float32)
    mask = np.tril(np.ones((5, 5), bool))[None].repeat(2, 0)
    np.testing.assert_allclose(attention(q, k, v), _numpy_attention(q, k, v, mask), atol=1e-5)


def _in_blocks(k_SXKE, v_SXKE, block):
    """The layout of the cache: k_SKNEC and v_SKXE."""
    slots, positions, heads, size = k_SXKE.shape
    k_SNCKE = k_SXKE.reshape(slots, positions // block, block, heads, size)
    return jnp.asarray(k_SNCKE.transpose(0, 3, 1, 4, 2)), jnp.asarray(v_SXKE.swapaxes(1, 2))


@pytest.mark.parametrize("chunk", [None, 3, 6, 256])
def test_attention_over_a_cache_equals_numpy_loop(chunk):
    """Queries anywhere in the caches of some slots, in any order."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 4, 6)).astype(np.float32)
    k, v = rng.normal(size=(2, 4, 9, 2, 6)).astype(np.float32)
    positions, rows = np.array([[0, 1, 2, 3, 4], [7, 3, 0, 6, 5]]), np.array([3, 1])
    mask = np.arange(9) <= positions[..., None]
    q_BKGTE = q.reshape(2, 5, 2, 2, 6).transpose(0, 2, 3, 1, 4)
    attend = functools.partial(attend_in_chunks, chunk=chunk) if chunk else attend_over_cache
    out = attend(q_BKGTE, *_in_blocks(k, v, 3), jnp.asarray(rows), jnp.asarray(positions))
    out = np.asarray(out).transpose(0, 3, 1, 2, 4).reshape(q.shape)
    np.testing.assert_allclose(out, _numpy_attention(q, k[rows], v[rows], mask), atol=1e-5)


def test_attention_with_one_query_equals_numpy_loop():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(3, 1, 4, 6)).astype(np.float32)
    k, v = rng.normal(size=(2, 3, 8, 2, 6)).astype(np.float32)
    positions = np.array([[0], [7], [4]])
    mask = np.arange(8) <= positions[..., None]
    out = attend_with_one_query(
        q.reshape(3, 2, 2, 6), *_in_blocks(k, v, 4), jnp.asarray(positions[:, 0])
    )
    out = np.asarray(out).reshape(q.shape)
    np.testing.assert_allclose(out, _numpy_attention(q, k, v, mask), atol=1e-5)


def test_rope_equals_complex_rotation():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2], [7, 100, 1000]])
    cos, sin = rope_angles(jnp.asarray(positions), 6, 10_000.0)
    rotated = np.asarray(rotate(x, cos[:, :, None], sin[:, :, None], axis=-1))
    columns = rotate(x.swapaxes(-1, -2), cos[..., None], sin[..., None], axis=-2)
    np.testing.assert_array_equal(np.swapaxes(columns, -1, -2), rotated)
    for pair in range(3):
        angle = positions * 10_000.0 ** (-2 * pair / 6)
        turned = (x[..., pair] + 1j * x[..., pair + 3]) * np.exp(1j * angle)[:, :, None]
        np.testing.assert_allclose(rotated[..., pair], turned.real, atol=2e-4)
        np.testing.assert_allclose(rotated[..., pair + 3], turned.imag, atol=2e-4)


def test_the_norm_over_any_axis_equals_its_formula():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    scale = np.arange(1, 5, dtype=np.float32)
    want = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 0.1) * scale[:, None]
    np.testing.assert_allclose(rms_norm(x, scale, 0.1, axis=-2), want, rtol=1e-6)
    rows = rms_norm(x.swapaxes(1, 2), scale, 0.1)
    np.testing.assert_allclose(np.swapaxes(rows, 1, 2), want, rtol=1e-6)


def _numpy_forward(model, ids):
    """Logits of one sequence, written out with loops over layers, tokens and heads."""
    c = model.config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model)))

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    def rope(x):
        out = np.empty_like(x)
        half = c.head_dim // 2
        for t in range(x.shape[0]):
            for i in range(half):
                angle = t * c.rope_theta ** (-2 * i / c.head_dim)
                a, b = x[t, :, i], x[t, :, i + half]
                out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
                out[t, :, i + half] = b * np.cos(angle) + a * np.sin(angle)
        return out

    x = p["trunk"]["embed"]["embedding"][ids]
    causal = np.tril(np.ones((len(ids), len(ids)), bool))[None]
    for layer in range(c.layers):
        w = jax.tree.map(lambda stacked, i=layer: stacked[i], p["trunk"]["layers"])
        a, h = w["attention"], norm(x, w["attention_norm"]["scale"])
        q, k, v = (np.einsum("td,dne->tne", h, a[n]["kernel"]) + a[n]["bias"] for n in "qkv")
        q, k = rope(norm(q, a["q_norm"]["scale"])), rope(norm(k, a["k_norm"]["scale"]))
        heads = _numpy_attention(q[None], k[None], v[None], causal)[0]
        x = x + np.einsum("the,hed->td", heads, a["o"]["kernel"])
        h = norm(x, w["ff_norm"]["scale"])
        gate = h @ w["ff"]["gate"]["kernel"]
        x = (
            x
            + (gate / (1 + np.exp(-gate)) * (h @ w["ff"]["up"]["kernel"]))
            @ (w["ff"]["down"]["kernel"])
        )
    return norm(x, p["trunk"]["norm"]["scale"]) @ p["trunk"]["embed"]["embedding"].T


def test_logits_equal_numpy_loops(model):
    ids = _ids(0, 1, 9)
    np.testing.assert_allclose(
        _logits(model, ids)[0], _numpy_forward(model, np.asarray(ids[0])), atol=2e-4
    )


def test_padding_on_the_right_changes_no_real_token(model):
    ids = _ids(0, 2, 12)
    padded = ids.at[0, 5:].set(7)
    np.testing.assert_allclose(
        _logits(model, padded)[0, :5], _logits(model, ids[:1, :5])[0], atol=1e-5
    )
    np.testing.assert_allclose(_logits(model, padded)[1], _logits(model, ids)[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["logits", "values"])
def test_packed_sequences_are_as_if_each_were_alone(model, kind):
    """Positions start again; what a row holds beside a sequence, padding too, is not seen."""
    if kind == "values":
        model = nnx.eval_shape(lambda: ValueModel(CONFIG, rngs=nnx.Rngs(0)))
        nnx.update(model, jax.tree.map(lambda x: 0.3 * x, _noise(nnx.state(model))))
    lengths, ids = (4, 1, 6, 3), _ids(0, 1, 14)
    segments = PackedSequences(
        jnp.asarray(np.repeat([5, 0, 2, 9], lengths)[None], "int32"),
        jnp.asarray(np.concatenate([np.arange(n) for n in lengths])[None], "int32"),
    )
    packed = nnx.jit(lambda model: model(ids, segments))(model)
    for stop, length in zip(np.cumsum(lengths), lengths):
        own = slice(stop - length, stop)
        alone = model(ids[:, own])
        assert np.abs(alone).max() > 0.1
        np.testing.assert_allclose(packed[:, own], alone, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots", "narrow", "attention"])
def test_remat_and_unroll_change_no_number(model, remat):
    config = dataclasses.replace(CONFIG, remat=remat, unroll=3)
    other = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    nnx.update(other, nnx.state(model))
    ids = _ids(0, 2, 6)

    @nnx.jit
    @nnx.value_and_grad
    def loss(m):
        return (m(ids) ** 2).mean()

    (want, want_grad), (got, got_grad) = loss(model), loss(other)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_grad, want_grad
    )


def test_names_of_remat_and_their_old_values():
    assert dataclasses.replace(CONFIG, remat=True).remat == "full"
    assert dataclasses.replace(CONFIG, remat=False).remat == CONFIG.remat == "none"
    with pytest.raises(
        ValueError, match=r"DecoderConfig.remat must be one of none, dots, .*, not 'some'"
    ):
        dataclasses.replace(CONFIG, remat="some")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(heads=0), "heads must be at least 1, not 0"),
        (dict(layers=2.5), "layers must be at least 1, not 2.5"),
        (dict(width=True), "width must be at least 1, not True"),
        (dict(ff_width=None), "ff_width must be at least 1, not None"),
        (dict(unroll=0), "unroll must be at least 1, not 0"),
        (dict(heads=3), "heads=3 must be a multiple of kv_heads=2"),
        (dict(head_dim=5), "head_dim=5 must be even"),
        (dict(dtype="float31"), "dtype must be one of float32, .*, not 'float31'"),
        (dict(param_dtype="int8"), "param_dtype must be one of float32, .*, not 'int8'"),
        (dict(rope_theta=0.0), "rope_theta must be positive, not 0.0"),
        (dict(rope_theta=float("nan")), "rope_theta must be positive, not nan"),
        (dict(norm_eps="x"), "norm_eps must be positive, not 'x'"),
    ],
)
def test_shapes_that_are_none(changes, message):
    with pytest.raises(ValueError, match=f"^DecoderConfig.{message}"):
        dataclasses.replace(CONFIG, **changes)


def test_remat_keeps_as_little_as_it_says(model):
    """What the backward pass is handed shrinks from "none" over "dots" and "narrow" to "full",
    and a mesh that splits weights over fsdp adds none of them collected."""
    kept = {}
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    for remat in ("none", "dots", "narrow", "full", "none on a mesh"):
        config = dataclasses.replace(CONFIG, remat=remat.split()[0], qkv_bias=False)
        graph, state = nnx.split(nnx.eval_shape(lambda c=config: Decoder(c, rngs=nnx.Rngs(0))))

        def loss(state, ids, graph=graph, remat=remat):
            with compute_on(mesh) if "mesh" in remat else contextlib.nullcontext():
                return nnx.merge(graph, state)(ids).sum()

        backward = jax.eval_shape(lambda s, i, f=loss: jax.vjp(f, s, i)[1], state, _ids(0, 2, 6))
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
    assert kept["dots"] < kept["none"]
    # Elsewhere than on TPUs, what the attention kernel gave is not kept.
    c, tokens = CONFIG, 12
    narrow = c.layers * tokens * (c.width + (c.heads + 2 * c.kv_heads) * c.head_dim)
    assert kept["narrow"] - kept["full"] == narrow
    assert kept["dots"] - kept["narrow"] == c.layers * tokens * 2 * c.ff_width
    weights = parameter_count(model)
    assert kept["none on a mesh"] < kept["none"] + weights / 2


def test_gradient_reaches_every_parameter_and_equals_a_difference_quotient(model):
    ids = _ids(0, 2, 6)
    graph, state = nnx.split(model)

    def loss(params):
        return jax.nn.log_softmax(nnx.merge(graph, params)(ids))[..., 0].mean()

    gradient = jax.jit(jax.grad(loss))(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    step, direction = 1e-3, _noise(state, seed=1)
    loss_along = jax.jit(lambda step: loss(_moved(state, direction, step)))
    slope = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(
        (loss_along(step) - loss_along(-step)) / (2 * step), slope, rtol=1e-2
    )


def test_gradient_of_a_token_does_not_reach_later_tokens(model):
    @jax.jit
    @jax.grad
    def early_gradient(embedded):
        positions = jnp.arange(6)[None]
        cos, sin = rope_angles(positions, CONFIG.head_dim, CONFIG.rope_theta)
        block_def, stack = nnx.split(model.trunk.layers)
        for layer in range(CONFIG.layers):
            params = jax.tree.map(lambda x, i=layer: x[i], stack)
            embedded = nnx.merge(block_def, params)(embedded, cos, sin, attention)
        return embedded[:, 2].sum()

    gradient = np.asarray(early_gradient(model.trunk.embed(_ids(0, 1, 6))))
    assert np.abs(gradient[:, :3]).min() > 0
    assert not gradient[:, 3:].any()


def test_value_model_starts_at_zero_in_float32():
    config = dataclasses.replace(CONFIG, layers=1, dtype="bfloat16", param_dtype="bfloat16")
    values = nnx.jit(lambda ids: ValueModel(config, rngs=nnx.Rngs(0))(ids))(_ids(0, 2, 5))
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, np.zeros((2, 5)))


def _count(config):
    return parameter_count(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))


def test_parameter_count_by_hand():
    attention = 24 * 4 * 6 * 2 + 24 * 2 * 6 * 2 + (4 + 2 + 2) * 6 + 2 * 6
    layer = attention + 3 * 24 * 20 + 2 * 24
    tied = 31 * 24 + 3 * layer + 24
    assert _count(CONFIG) == tied
    untied = dataclasses.replace(CONFIG, tied_embeddings=False)
    assert _count(untied) == tied + 31 * 24
