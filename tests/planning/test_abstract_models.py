"""The models of a plan have the shapes of those that training builds."""

import jax
import numpy as np
import pytest
import small_checkpoints
from flax import nnx

from sr1_jax.planning.run import make_run
from sr1_jax.planning.step import Assumptions
from sr1_jax.planning.timing import needed_flops
from sr1_jax.rl.program_keys import Accumulate, Score
from sr1_jax.sharding import make_mesh
from sr1_jax.training.learning import abstract_models, models_to_train
from sr1_jax.training.policies import starting_policy
from sr1_jax.training.settings import default_config

MESH = make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture
def write(tmp_path):
    """Function of a name and changes to config.json -> a folder of weights, as a string."""

    def write(name, **changes):
        (tmp_path / name).mkdir()
        backend = small_checkpoints.train_backend()
        small_checkpoints.write_folder(tmp_path / name, backend, **changes)
        return str(tmp_path / name)

    return write


def shapes_of(model):
    state = nnx.state(model)
    return jax.tree.map(lambda x: (np.shape(x), np.dtype(x.dtype)), state)


@pytest.mark.parametrize("rank", [0, 2], ids=["all parameters", "adapters"])
@pytest.mark.parametrize("critic", [None, {"hidden_size": 32, "num_hidden_layers": 3}])
def test_shapes_are_those_that_training_builds(write, tmp_path, rank, critic):
    config = default_config()
    config.base.path, config.lora.rank = write("policy"), rank
    if critic:
        config.critic.path = write("critic", **critic)
    policy, tokenizer = starting_policy(config, tmp_path, MESH)
    built = models_to_train(config, policy, tokenizer, MESH)
    planned = abstract_models(config)
    for real, abstract in zip(built, planned, strict=True):
        assert shapes_of(real) == shapes_of(abstract)
        assert real.config == abstract.config
    width = critic["hidden_size"] if critic else policy.config.width
    assert planned[1].config.width == width


def test_a_plan_has_the_shape_of_the_critic_that_is_named(write):
    """Without a folder of the policy too: model.preset says its shape."""
    config = default_config()
    config.model.vocab_size = 512
    config.questions = config.rollout.slots = 8
    config.learner.micro_batch = config.learner.minibatch_size = 4
    as_policy = make_run(config, jax.devices()[:1])
    assert as_policy.critic == as_policy.policy
    config.critic.path = write("critic")
    run = make_run(config, jax.devices()[:1])
    assert (run.critic.width, run.critic.layers, run.critic.vocab_size) == (16, 2, 512)
    width = run.resident["critic"]["trunk"]["embed"]["embedding"].get_value().shape
    assert width == (512, 16)
    assumed = Assumptions(40, 1, 12, 24)
    by_key = {program.key: program for program in run.programs}
    key = next(k for k in by_key if isinstance(k, Accumulate) and k.model == "critic")
    twin = Accumulate("policy", key.length, key.trained)
    critic, policy = (needed_flops(run, by_key[k], assumed) for k in (key, twin))
    assert critic < policy / 10
    # Scores are one pass of each model where the KL needs the reference.
    score = needed_flops(run, by_key[Score(key.length, key.trained)], assumed)
    assert score == pytest.approx((critic + policy) / 3)
