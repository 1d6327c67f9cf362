"""Where models come from: presets and folders, critics from elsewhere, adapters."""

from pathlib import Path

import jax
import numpy as np
import pytest
import small_checkpoints
from flax import nnx

from sr1_jax.models import load_pretrained, preset_config
from sr1_jax.sharding import make_mesh
from sr1_jax.training.checks import check_config
from sr1_jax.training.learning import models_to_train
from sr1_jax.training.policies import (
    check_base,
    critic_files,
    decoder_config,
    starting_policy,
)
from sr1_jax.training.settings import default_config

MESH = make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture
def write(tmp_path):
    """Function of a name and changes to config.json -> a folder of weights, as a string."""

    def write(name, backend=None, **changes):
        (tmp_path / name).mkdir()
        backend = backend or small_checkpoints.train_backend()
        small_checkpoints.write_folder(tmp_path / name, backend, **changes)
        return str(tmp_path / name)

    return write


@pytest.fixture
def config(write):
    config = default_config()
    config.base.path = write("policy")
    return config


def test_the_shape_of_a_policy(config):
    found = decoder_config(config)
    assert (found.width, found.layers, found.dtype, found.remat) == (16, 2, "float32", "none")
    config.base.update(dtype="bfloat16", remat=True)
    found = decoder_config(config)
    assert (found.width, found.dtype, found.param_dtype, found.remat) == (
        16, "bfloat16", "float32", "full"
    )  # fmt: skip
    config.base.path, config.model.preset = "", "qwen3-8b"
    assert decoder_config(config) == preset_config("qwen3-8b", dtype="bfloat16", remat=True)
    config.model.preset, config.base.workdir = "", "nowhere"
    with pytest.raises(ValueError, match="nowhere/base holds no base policy"):
        decoder_config(config)
    config.base.workdir = ""
    found = decoder_config(config)
    assert (found.vocab_size, found.width, found.head_dim) == (1400, 128, 32)


@pytest.mark.parametrize("rows", [290, 300, 333])
def test_a_critic_from_another_folder(write, config, rows):
    """Of another width and depth, with more or fewer rows than the policy has."""
    config.critic.path = write("critic", hidden_size=24, num_hidden_layers=1, vocab_size=rows)
    check_base(config, MESH)
    policy, tokenizer = load_pretrained(config.base.path)
    same, critic = models_to_train(config, policy, tokenizer, MESH)
    assert same is policy
    assert (critic.config.width, critic.config.layers, critic.config.vocab_size) == (24, 1, 300)
    theirs, _ = load_pretrained(config.critic.path)
    embedding = np.asarray(theirs.trunk.embed.embedding[...])
    np.testing.assert_array_equal(critic.trunk.embed.embedding[...][:290], embedding[:290])
    assert critic.trunk.embed.embedding[...].shape == (300, 24)
    if rows == 290:
        assert not np.any(critic.trunk.embed.embedding[...][290:])
    ids = np.array([[1, 2, 289]])
    np.testing.assert_allclose(critic.trunk(ids), theirs.trunk(ids), atol=1e-6)
    assert np.isfinite(critic(np.array([[299]]))).all()


def test_a_critic_that_reads_other_ids(write, config):
    backend = small_checkpoints.train_backend(["Quite another text, so other merges. " * 5])
    config.critic.path = write("critic", backend)
    with pytest.raises(ValueError, match=r"critic: token 2\d\d is '.*', but '.*' for the policy"):
        check_base(config, MESH)
    _, tokenizer = load_pretrained(config.base.path)
    with pytest.raises(ValueError, match="a critic has to read the policy's ids"):
        critic_files(config, tokenizer)


def test_a_critic_that_is_not_there(config):
    config.critic.path = "nowhere"
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        check_base(config, MESH)


def test_a_mistyped_workdir_of_another_run(config, tmp_path):
    """It was made, and then refused."""
    config.base.path, config.base.workdir = "", str(tmp_path / "runs" / "dmeo")
    with pytest.raises(ValueError, match=r"base\.workdir=.*dmeo: there is no such folder"):
        check_base(config, MESH)
    assert not (tmp_path / "runs").exists()
    config.base.workdir = str(tmp_path)
    with pytest.raises(ValueError, match="base holds no base policy; run the warm start first"):
        check_base(config, MESH)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("own", [False, True])
def test_with_adapters_no_trunk_is_held_twice(write, config, own):
    config.lora.rank = 2
    if own:
        config.critic.path = write("critic", hidden_size=24)
    plain, tokenizer = load_pretrained(config.base.path)
    policy, critic = models_to_train(config, plain, tokenizer, MESH)
    ids = np.array([[1, 2, 289]])
    np.testing.assert_array_equal(policy(ids), plain(ids))
    np.testing.assert_array_equal(critic(ids), np.zeros((1, 3)))

    def arrays(model):
        base = nnx.state(model.trunk, nnx.Not(nnx.LoRAParam))
        return {id(x) for x in jax.tree.leaves(base)}

    assert arrays(policy) == arrays(plain)
    assert bool(arrays(critic) & arrays(plain)) is not own
    assert own or arrays(critic) == arrays(plain)
    adapters = [nnx.state(m, nnx.LoRAParam) for m in (policy, critic)]
    a_policy, a_critic = (np.asarray(jax.tree.leaves(x)[0]) for x in adapters)
    assert a_policy.shape != a_critic.shape or np.any(a_policy != a_critic)


def test_what_is_trained_is_in_float32(config):
    config.lora.rank = 2
    config.base.update(dtype="bfloat16", param_dtype="bfloat16")
    plain, tokenizer = starting_policy(config, Path(), MESH)
    for model in models_to_train(config, plain, tokenizer, MESH):
        _, trained, frozen = nnx.split(model, model.trainable, ...)
        assert {x.dtype for x in jax.tree.leaves(trained)} == {np.dtype("float32")}
        assert {str(x.dtype) for x in jax.tree.leaves(frozen)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": -1}, "lora.rank must not be negative, not -1"),
        ({"lora.rank": 4, "lora.alpha": 0.0}, "lora.alpha must be positive, not 0.0"),
        (
            {"lora.rank": 4, "lora.targets": ("head",)},
            r"lora.targets must hold only q and .*'head'",
        ),
        (
            {"critic.path": "x", "learner.algorithm": "grpo", "samples": 2},
            "critic.path is set, but .*grpo.* has no critic",
        ),
    ],
)
def test_bad_settings(changes, message):
    config = default_config()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    with pytest.raises(ValueError, match=message):
        check_config(config, inputs=False)


def test_a_published_model_needs_its_folder():
    config = default_config()
    config.model.preset = "qwen2.5-7b"
    with pytest.raises(ValueError, match=r"base\.path is not set: name the folder .* qwen2\.5-7b"):
        check_base(config, MESH)
