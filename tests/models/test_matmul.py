"""Products in bfloat16 with sums in float32: against float64 on rounded factors, and in models."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from sr1_jax.models.cached_forward import forward_cached, next_token_logits
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.lora import LoraConfig
from sr1_jax.models.matmul import bfloat16_dot_general, bfloat16_matmul
from sr1_jax.models.serving import KVCache, serving_params
from sr1_jax.rl.token_logp import token_logp

CONFIG = DecoderConfig(
    vocab_size=61, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ff_width=48,
    matmul_dtype="bfloat16",
)  # fmt: skip
RNG = np.random.default_rng(0)


def rounded(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def model_of(config):
    """With weights that are not zero anywhere."""
    model = Decoder(config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    state = nnx.state(model)
    noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.15, x.dtype), state)
    nnx.update(model, jax.tree.map(jnp.add, state, noise))
    return model


def in_float32(model):
    """The same weights, multiplied in float32."""
    config = dataclasses.replace(model.config, matmul_dtype="same")
    return nnx.merge(nnx.graphdef(Decoder(config, rngs=nnx.Rngs(0))), nnx.state(model))


@pytest.mark.parametrize("outer", [(), (3,), (2, 3)], ids=str)
def test_a_product_and_its_gradient(outer):
    a, b = RNG.normal(size=(*outer, 5, 7)), RNG.normal(size=(*outer, 7, 4))
    d = RNG.normal(size=(*outer, 5, 4))
    out, vjp = jax.vjp(bfloat16_matmul, jnp.float32(a), jnp.float32(b))
    d_a, d_b = vjp(jnp.float32(d))
    assert out.dtype == d_a.dtype == d_b.dtype == jnp.float32
    np.testing.assert_allclose(out, rounded(a) @ rounded(b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_a, rounded(d) @ rounded(b).swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_b, rounded(a).swapaxes(-1, -2) @ rounded(d), rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(out) - a @ b).max() > 1e-3  # it does round


def test_linear_layers_over_several_axes():
    x, kernel = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(4, 5, 6, 7))
    got = bfloat16_dot_general(jnp.float32(x), jnp.float32(kernel), (((2, 3), (0, 1)), ((), ())))
    want = np.einsum("abij,ijmn->abmn", rounded(x), rounded(kernel))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError):
        bfloat16_dot_general(jnp.float32(x), jnp.float32(kernel), (((1, 3), (0, 1)), ((), ())))


@pytest.mark.parametrize("lora", [None, LoraConfig(2, alpha=2.0)], ids=["all", "lora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_and_its_gradients_are_those_of_float32_but_for_rounding(tied, lora):
    config = dataclasses.replace(CONFIG, tied_embeddings=tied, lora=lora)
    ids = jnp.asarray(RNG.integers(0, 61, (2, 9)))
    wanted = jnp.ones((2, 9)).at[:, :3].set(0)

    def gradient(model):
        graph, trained, rest = nnx.split(model, model.trainable, ...)

        def loss(trained):
            logp, entropy = token_logp(nnx.merge(graph, trained, rest), ids, wanted, max_wanted=6)
            return (logp + 0.1 * entropy).sum()

        value, found = jax.value_and_grad(loss)(trained)
        return value, np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    model = model_of(config)
    plain = in_float32(model)
    (value, found), (exact, true) = gradient(model), gradient(plain)
    assert 1e-7 < abs(value / exact - 1) < 0.01
    assert found @ true / np.linalg.norm(found) / np.linalg.norm(true) > 0.999
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(true), rel=0.01)
    logits = model(ids)
    np.testing.assert_allclose(logits, plain(ids), atol=0.03 * float(jnp.abs(logits).max()))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rollouts_round_as_training_does(tied):
    """What is left between them is attention, whose products rollouts keep in float32."""
    config = dataclasses.replace(CONFIG, tied_embeddings=tied)
    model = model_of(config)
    ids = jnp.asarray(RNG.integers(0, 61, (2, 9)))
    params = serving_params(config, nnx.state(model))
    assert params.layers[0].down_DF.dtype == jnp.bfloat16
    assert params.embed_VD.dtype == jnp.float32 and params.head_VD.dtype == jnp.bfloat16
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    hidden, _ = forward_cached(config, params, ids, positions, KVCache.empty(config, 2, 16))
    served = next_token_logits(config, params, hidden.reshape(config.width, -1)).T
    trained = model(ids).reshape(-1, 61)
    plain = in_float32(model)(ids).reshape(-1, 61)
    between, to_exact = (np.abs(x - trained).mean() for x in (served, plain))
    assert between < 0.9 * to_exact


def test_activations_in_bfloat16_have_no_other():
    with pytest.raises(ValueError, match=r"matmul_dtype='bfloat16' is for dtype='float32'"):
        dataclasses.replace(CONFIG, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"matmul_dtype must be one of same, bfloat16"):
        dataclasses.replace(CONFIG, matmul_dtype="int8")
