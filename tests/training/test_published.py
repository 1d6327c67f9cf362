"""Configs of published runs: every choice works and has the published numbers."""

import importlib
import itertools
from pathlib import Path

import pytest
from flax import nnx

import sr1_jax
from sr1_jax.models import Decoder, parameter_count
from sr1_jax.models.shapes import SHAPES
from sr1_jax.rl.settings import minibatches as minibatches_of
from sr1_jax.rl.settings import optimizer_steps
from sr1_jax.training.checks import check_config
from sr1_jax.training.policies import decoder_config
from sr1_jax.training.published import ALGORITHMS, VARIANTS

NAMES = ("qwen2_5", "qwen3", "llama3")


@pytest.fixture
def load(monkeypatch):
    """Function of a config's name -> its module, as if started from the repository."""
    monkeypatch.syspath_prepend(Path(sr1_jax.__file__).parents[1])
    return lambda name: importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_every_choice(load, name):
    module = load(name)
    for size, algo, variant in itertools.product(module.SIZES, ALGORITHMS, VARIANTS):
        config = module.get_config(f"size={size},algo={algo},variant={variant}")
        check_config(config, inputs=False)
        assert config.protocol.chat == (variant == "instruct")
        assert config.learner.algorithm == algo
        shape = decoder_config(config)
        assert (shape.dtype, shape.param_dtype) == ("bfloat16", "float32")
        assert shape.remat == module.SIZES[size].remat
        assert shape.kv_heads % config.mesh.tensor == 0
        # A slot of the rollout engine lives in one host, and those of pods have four chips.
        assert 4 % config.mesh.tensor == 0
        assert shape.vocab_size % config.mesh.tensor == 0
        model = nnx.eval_shape(lambda shape=shape: Decoder(shape, rngs=nnx.Rngs(0)))
        assert parameter_count(model) == SHAPES[config.model.preset].parameters


def test_every_published_model_has_a_config(load):
    presets = {size.preset for name in NAMES for size in load(name).SIZES.values()}
    assert presets == set(SHAPES)


def test_published_numbers(load):
    """Of arXiv 2503.09516, appendix; warm-up is a share of 500 steps of 2 or 10 mini-batches."""
    get_config = load("qwen2_5").get_config
    ppo, grpo = get_config("algo=ppo"), get_config("algo=grpo")
    for config in (ppo, grpo):
        learner, rollout = config.learner, config.rollout
        assert (config.steps, config.questions) == (500, 512)
        assert (learner.learning_rate, learner.critic_learning_rate) == (1e-6, 1e-5)
        assert (learner.clip, learner.value_clip, learner.gradient_clip) == (0.2, 0.5, 1.0)
        assert (learner.gamma, learner.lam, learner.entropy_coefficient) == (1.0, 1.0, 0.001)
        assert (learner.kl_coefficient, learner.epochs) == (0.001, 1)
        assert (rollout.max_searches, rollout.passages, rollout.temperature) == (4, 3, 1.0)
        assert (rollout.max_segment_tokens, rollout.max_observation_tokens) == (500, 500)
        assert rollout.max_context_tokens == learner.length_buckets[-1] == 4096
        assert learner.minibatch_size == 256
    assert (ppo.samples, ppo.learner.kl_in, ppo.learner.kl_kind) == (1, "reward", "k1")
    assert optimizer_steps_of(ppo, "warmup_share") == 285
    assert optimizer_steps_of(ppo, "critic_warmup_share") == 15
    assert (grpo.samples, grpo.learner.kl_in, grpo.learner.kl_kind) == (5, "loss", "k3")
    assert optimizer_steps_of(grpo, "warmup_share") == 1425


def optimizer_steps_of(config, share):
    """Optimizer steps that a share of the run comes to."""
    trajectories = config.questions * config.samples
    return round(
        config.learner[share] * optimizer_steps(config.learner, trajectories, config.steps)
    )


@pytest.mark.parametrize(
    ("algo", "override", "minibatches", "warmup"),
    [
        # 1,000 optimizer steps, of which 285 warm up; a fifth of the steps, a fifth of both.
        ("ppo", {"steps": 100}, 2, 57),
        ("ppo", {"questions": 128}, 1, 142),  # mini-batches were cut to 64
        ("ppo", {"samples": 8}, 16, 2280),
        ("grpo", {"samples": 8}, 16, 2280),  # was refused: ten do not divide 4,096
        ("grpo", {"steps": 100}, 10, 285),
        ("grpo", {"questions": 128, "samples": 4}, 2, 285),
    ],
)
def test_an_override_does_what_it_says(load, algo, override, minibatches, warmup):
    """Warm-up stays its share of the run, and a mini-batch its size."""
    config = load("qwen2_5").get_config(f"algo={algo}")
    config.update(override)
    check_config(config, inputs=False)
    trajectories = config.questions * config.samples
    assert minibatches_of(config.learner, trajectories) == minibatches
    assert trajectories / minibatches == min(256, trajectories)
    assert optimizer_steps_of(config, "warmup_share") == warmup


def test_what_an_argument_leaves_out(load):
    config = load("qwen2_5").get_config()
    assert (config.model.preset, config.learner.algorithm) == ("qwen2.5-7b", "ppo")
    assert not config.protocol.chat
    assert load("qwen2_5").get_config("size=72b").model.preset == "qwen2.5-72b"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size=8b", "'size=8b': size must be one of 0.5b, 1.5b, 3b, 7b, 14b, 32b, 72b"),
        ("algo=dpo", "'algo=dpo': algo must be one of ppo, grpo"),
        ("variant=chat", "'variant=chat': variant must be one of base, instruct"),
        ("7b", "'7b': the keys are size, algo, variant, each as key=value"),
        ("size", "'size': size must be one of"),
        ("lr=1", "'lr=1': the keys are size, algo, variant"),
        ("size=7b,size=3b", "size is given twice"),
        ("size=7b,", "'': the keys are"),
    ],
)
def test_bad_arguments(load, argument, message):
    with pytest.raises(ValueError, match=message):
        load("qwen2_5").get_config(argument)
