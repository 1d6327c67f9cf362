"""Adapters: nothing at first, W + s·AB afterwards, and the same once merged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.models import Decoder, DecoderConfig, ValueModel, parameter_count
from sr1_jax.models.lora import (
    TARGETS,
    LoraConfig,
    add_adapters,
    merged_model,
    without_adapters,
)
from sr1_jax.sharding import make_mesh, tree_shardings

CONFIG = DecoderConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, ff_width=20, qkv_bias=True,
    tied_embeddings=False,
)  # fmt: skip
LORA = LoraConfig(rank=3, alpha=12.0)
IDS = np.random.default_rng(0).integers(0, 32, (2, 9))


def noisy(model, seed, *filters, scale=0.3):
    rng = np.random.default_rng(seed)
    state = nnx.state(model, *filters)
    nnx.update(
        model, jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * scale), state)
    )
    return model


@pytest.fixture(scope="module")
def base():
    return noisy(Decoder(CONFIG, rngs=nnx.Rngs(0)), 1, nnx.Param)


def flat(model):
    return {".".join(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("o", "down")], ids=",".join)
def test_a_new_adapter_changes_nothing(base, targets):
    model = add_adapters(base, LoraConfig(rank=3, alpha=12.0, targets=targets), seed=5)
    np.testing.assert_array_equal(model(IDS), base(IDS))
    adapters = {path for path in flat(model) if "lora" in path}
    assert {path.split(".")[-2] for path in adapters} == set(targets)
    assert len(adapters) == 2 * len(targets)
    assert parameter_count(without_adapters(model)) == parameter_count(base)


def test_an_adapter_adds_its_product(base):
    """Against kernels to which loops over layers and axes have added alpha / rank · A B."""
    model = noisy(add_adapters(base, LORA, seed=5), 2, nnx.LoRAParam)
    values, plain = flat(model), without_adapters(model)
    for module in ("attention.q", "attention.k", "attention.v", "attention.o", "ff.gate", "ff.up",
                   "ff.down"):  # fmt: skip
        path = f"trunk.layers.{module}"
        kernel, a, b = (values[f"{path}.{x}"].copy() for x in ("kernel", "lora_a", "lora_b"))
        for layer in range(2):
            for into in np.ndindex(a.shape[1:-1]):
                for r in range(3):
                    kernel[(layer, *into)] += 4.0 * a[(layer, *into, r)] * b[layer, r]
        part = plain.trunk.layers
        for name in module.split("."):
            part = getattr(part, name)
        part.kernel[...] = jnp.asarray(kernel)
    np.testing.assert_allclose(model(IDS), plain(IDS), atol=2e-5)
    assert np.abs(np.asarray(model(IDS) - base(IDS))).max() > 0.1


def test_merged_equals_the_adapter_model(base):
    model = noisy(add_adapters(base, LORA, seed=5), 2, nnx.LoRAParam)
    merged = merged_model(model)
    assert merged.config == CONFIG
    assert flat(merged).keys() == flat(base).keys()
    np.testing.assert_allclose(merged(IDS), model(IDS), atol=2e-5)
    # The base is left as it was.
    np.testing.assert_array_equal(without_adapters(model)(IDS), base(IDS))


def test_a_base_in_bfloat16_stays_so(base):
    config = DecoderConfig(**{**CONFIG.__dict__, "dtype": "bfloat16", "param_dtype": "bfloat16"})
    half = Decoder(config, rngs=nnx.Rngs(0))
    model = noisy(add_adapters(half, LORA, seed=5), 2, nnx.LoRAParam)
    dtypes = {path: str(x.dtype) for path, x in flat(model).items()}
    assert {d for path, d in dtypes.items() if "lora" in path} == {"float32"}
    assert {d for path, d in dtypes.items() if "lora" not in path} == {"bfloat16"}
    assert model(IDS).dtype == jnp.bfloat16
    assert {str(x.dtype) for x in flat(merged_model(model)).values()} == {"bfloat16"}


def test_what_is_trained(base):
    assert nnx.split(base, base.trainable, ...)[2] == nnx.State({})
    model = add_adapters(base, LORA, seed=5)
    _, trained, frozen = nnx.split(model, model.trainable, ...)
    assert {path[-1] for path, _ in nnx.to_flat_state(trained)} == {"lora_a", "lora_b"}
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(nnx.state(base)))
    value = add_adapters(ValueModel(CONFIG, rngs=nnx.Rngs(0)), LORA, seed=5)
    _, trained, frozen = nnx.split(value, value.trainable, ...)
    assert {path[-1] for path, _ in nnx.to_flat_state(trained)} == {
        "lora_a", "lora_b", "kernel", "bias"
    }  # fmt: skip
    assert {path[0] for path, _ in nnx.to_flat_state(frozen)} == {"trunk"}


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 4, 1)], ids=str)
def test_adapters_on_a_mesh(base, shape):
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    alone, spread = (
        nnx.state(add_adapters(base, LORA, seed=5, mesh=m), nnx.LoRAParam) for m in (None, mesh)
    )
    assert jax.tree.map(lambda x: x.sharding, spread) == tree_shardings(spread, mesh)
    jax.tree.map(np.testing.assert_array_equal, spread, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rank=0), "LoraConfig.rank must be at least 1, not 0"),
        (dict(alpha=0.0), "LoraConfig.alpha must be above 0, not 0"),
        (
            dict(targets=()),
            r"LoraConfig.targets must be some of q, k, v, o, gate, up, down, not \(\)",
        ),
        (dict(targets=("q", "head")), r"not \('q', 'head'\)"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**{"rank": 3} | changes)
