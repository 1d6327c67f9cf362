"""Who holds the state of training: nobody but the caller, resumed or not."""

import gc

import jax
import numpy as np
import pytest
from flax import nnx
from learner_runs import STEPS, TRAJECTORIES, learner_config
from trees import assert_trees_close

from sr1_jax.models.lora import LoraConfig, add_adapters
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import needs_critic
from sr1_jax.sharding import make_mesh

ONE = (1, 1, 1)


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.fixture
def make_learner(rl_policy, rl_critic):
    """Function of (mesh shape, **settings) -> a learner of models that nobody else has."""

    def make(shape=ONE, lora=False, **changes):
        config = learner_config(**changes)
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        models = []
        for model in (rl_policy, rl_critic):
            graph, state = nnx.split(model)
            model = nnx.merge(graph, jax.tree.map(lambda x: jax.numpy.array(x), state))
            models.append(add_adapters(model, LoraConfig(rank=3), seed=1) if lora else model)
        policy, critic = models[0], models[1] if needs_critic(config) else None
        return Learner(policy, critic, config, mesh, trajectories=TRAJECTORIES, steps=STEPS)

    return make


def restored(state, like):
    """The state as a checkpoint gives it back: arrays of its own, placed as `like` says."""
    return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), state, like)


@pytest.mark.parametrize(
    ("shape", "lora", "algorithm"),
    [
        (ONE, False, "rloo"),
        pytest.param((2, 2, 2), False, "ppo", marks=pytest.mark.slow),
        pytest.param((2, 2, 2), True, "ppo", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_holds_what_a_fresh_one_does(make_learner, batch, shape, lora, algorithm):
    learner = make_learner(shape, lora, algorithm=algorithm)
    saved = jax.device_get(learner.initial_state())
    del learner
    before = live_bytes()

    def run(start):
        """Bytes that a run holds before and after a step."""
        learner = make_learner(shape, lora, algorithm=algorithm)
        state = start(learner)
        # Rollouts run with the parameters before there is a step, and need the room.
        learner.policy_params(state)
        waiting = live_bytes() - before
        state, metrics = learner.step(state, batch, seed=0, step=1)[:2]
        return waiting, live_bytes() - before, metrics

    fresh = run(lambda learner: learner.initial_state())
    resumed = run(lambda learner: restored(saved, learner.abstract_state))
    assert resumed == fresh
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(saved))
    assert fresh[1] > state_bytes


@pytest.mark.parametrize("shape", [ONE, pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str)
def test_a_restored_state_compiles_nothing_anew(make_learner, batch, shape):
    jax.clear_caches()  # learners of other tests share some programs
    learner = make_learner(shape, algorithm="rloo")
    state = learner.initial_state()

    def compiled():
        return [program.jitted._cache_size() for program in learner.programs()]

    state = learner.step(state, batch, seed=0, step=1).state
    once = compiled()
    state = learner.step(state, batch, seed=0, step=1).state
    state = restored(jax.device_get(state), learner.abstract_state)
    learner.step(state, batch, seed=0, step=1)
    assert compiled() == once and set(once) <= {1, 2, 3}


def test_every_initial_state_is_a_new_one(make_learner, batch):
    learner = make_learner()
    first, second = learner.initial_state(), learner.initial_state()
    assert_trees_close(first, second, rtol=0)
    learner.step(first, batch, seed=0, step=1)
    assert all(x.is_deleted() for x in jax.tree.leaves(first.policy))
    assert not any(x.is_deleted() for x in jax.tree.leaves(second))
    with pytest.raises(RuntimeError, match=r"ask for initial_state\(\) before"):
        learner.initial_state()


@pytest.mark.parametrize("offload", [(), ("optimizer",)])
def test_the_abstract_state_says_where_everything_goes(make_learner, offload):
    learner = make_learner((2, 2, 2), offload=offload)
    shapes, state = learner.abstract_state, learner.initial_state()
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(state)):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_a_learner_of_shapes_lists_the_programs_of_one_that_runs(
    rl_policy, rl_critic, make_learner
):
    real = make_learner((2, 2, 2))
    models = [
        nnx.merge(graph, jax.eval_shape(lambda state=state: state))
        for graph, state in (nnx.split(model) for model in (rl_policy, rl_critic))
    ]
    learner = Learner(
        *models, learner_config(), make_mesh(2, 2, 2), trajectories=TRAJECTORIES, steps=STEPS
    )
    names = [program.name for program in learner.programs()]
    assert names == [program.name for program in real.programs()]
    assert {"score 24/6", "prepare", "totals", "policy zeros", "policy accumulate 24/24"} <= set(
        names
    )
    for one, other in zip(learner.programs(), real.programs()):
        assert one.key == other.key
        assert jax.tree.map(lambda x: (x.shape, x.dtype), one.arguments) == jax.tree.map(
            lambda x: (x.shape, x.dtype), other.arguments
        )
