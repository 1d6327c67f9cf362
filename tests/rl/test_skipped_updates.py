"""An update that is not finite is not made: nothing moves, not a bit, and it is counted."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learner_runs import batch_of
from trees import assert_trees_close, changed

from sr1_jax.rl.aggregation import Totals
from sr1_jax.rl.micro_batches import MicroBatch
from sr1_jax.rl.settings import default_config
from sr1_jax.rl.step_metrics import over_updates
from sr1_jax.rl.update import Update, make_optimizer, place_model
from sr1_jax.sharding import make_mesh

ONE = (1, 1, 1)


def assert_same_bits(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want
    )


@pytest.fixture
def update_and_state():
    mesh = make_mesh(*ONE, devices=jax.devices()[:1])
    schedule = optax.linear_schedule(0.0, 0.4, 4)
    optimizer = make_optimizer(schedule, default_config())
    params = {"head": {"kernel": jnp.arange(8.0).reshape(4, 2)}}
    state = place_model(params, optimizer, mesh)

    class Rows(dict):
        trains_BT = property(lambda self: self["trains_BT"])

    def loss_fn(params, rows, totals, trained, packed):
        """Finite for every x, but its gradient is infinite, and then not a number, at x = 0."""
        root = jnp.sqrt(rows["x_BT"].sum() * jnp.sum(params["head"]["kernel"]) ** 2)
        return {"root": root}, {}

    jax.tree_util.register_pytree_node(
        Rows, lambda rows: (list(rows.values()), list(rows)), lambda k, v: Rows(zip(k, v))
    )
    update = Update("policy", loss_fn, optimizer, state, mesh, schedule)

    def step(state, x, **more):
        rows = Rows(x_BT=np.full((1, 2), x, np.float32), trains_BT=np.ones((1, 2), np.float32))
        plan = [MicroBatch(np.arange(1), 2, 2)]
        return update(state, rows, plan, Totals(2.0, 1.0, 1.0, 2.0), **more)

    return step, state


def copy_of(state):
    return jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)


def test_a_gradient_that_is_not_a_number_moves_nothing(update_and_state):
    """The loss itself is finite: the check has to look at the gradient."""
    step, state = update_and_state
    state, _ = step(state, 1.0)
    before = copy_of(state)
    after, metrics = step(state, 0.0)
    assert math.isfinite(metrics["loss"]) and not math.isfinite(metrics["gradient_norm"])
    assert metrics["skipped"] == 1
    assert_same_bits(after, before)  # counters of Adam and of the schedule too
    # And the run goes on as if it had not been there.
    without, _ = step(copy_of(before), 1.0)
    after, metrics = step(after, 1.0)
    assert metrics["skipped"] == 0 and changed(after.params, before.params)
    assert_same_bits(after, without)


def test_a_loss_that_is_infinite_moves_nothing(update_and_state):
    step, state = update_and_state
    state, _ = step(state, 1.0)
    before = copy_of(state)
    after, metrics = step(state, math.inf)
    assert metrics["loss"] == math.inf and metrics["skipped"] == 1
    assert_same_bits(after, before)


def test_the_rate_is_logged_and_scaled(update_and_state):
    """Half the rate gives half the step; warm-up goes by the updates that were done."""
    step, state = update_and_state
    state, metrics = step(state, 1.0)
    assert metrics["learning_rate"] == 0
    state, metrics = step(state, 0.0)  # skipped
    assert metrics["learning_rate"] == pytest.approx(0.1)
    before = copy_of(state)
    ends = {}
    for scale in (1.0, 0.5):
        end, metrics = step(copy_of(before), 1.0, rate_scale=scale)
        assert metrics["learning_rate"] == pytest.approx(0.1 * scale)
        ends[scale] = jax.tree.map(lambda a, b: np.asarray(a) - b, end.params, before.params)
    assert_trees_close(ends[0.5], jax.tree.map(lambda x: 0.5 * x, ends[1.0]), rtol=1e-5)
    assert changed(ends[1.0], jax.tree.map(np.zeros_like, ends[1.0]))


def test_a_reward_that_is_not_a_number(learner_run, trajectories):
    """Whitened advantages are then all of them none; returns are not whitened, and of the critic
    only the mini-batch that holds it is skipped."""
    run = learner_run(minibatch_size=8)
    rewards = trajectories[5].segment_rewards.copy()
    rewards[-1] = math.nan
    planted = list(trajectories)
    planted[5] = dataclasses.replace(
        trajectories[5], segment_rewards=rewards, reward=float(rewards.sum())
    )
    state, metrics = run.step(batch_of(planted), run.moved)
    assert (metrics["policy/skipped"], metrics["critic/skipped"]) == (2, 1)
    assert math.isnan(metrics["policy/loss"]) and math.isfinite(metrics["critic/loss"])
    assert_same_bits(state.policy, run.moved.policy)
    assert changed(state.critic.params, run.moved.critic.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.critic))


def test_only_the_minibatch_with_it_is_skipped(learner_run, trajectories):
    """Without whitening a reward reaches its own group alone; means are over what was done."""
    run = learner_run(minibatch_size=2, micro_batch=2, algorithm="rloo", kl_in="none")
    rewards = trajectories[5].segment_rewards * math.nan
    planted = list(trajectories)
    planted[5] = dataclasses.replace(trajectories[5], segment_rewards=rewards, reward=math.nan)
    state, metrics = run.step(batch_of(planted), run.moved)
    assert 2 <= metrics["policy/skipped"] <= 4  # of 8: the group of four is in so many
    assert math.isfinite(metrics["policy/loss"]) and metrics["policy/gradient_norm"] > 0
    assert changed(state.policy.params, run.moved.policy.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.policy))


def test_means_over_updates():
    history = [
        {"policy/loss": 1.0, "policy/skipped": 0.0, "critic/loss": 2.0, "critic/skipped": 0.0},
        {"policy/loss": math.nan, "policy/skipped": 1.0, "critic/loss": 4.0, "critic/skipped": 0.0},
        {"policy/loss": 5.0, "policy/skipped": 0.0, "critic/loss": 6.0, "critic/skipped": 0.0},
    ]
    assert over_updates(history) == {
        "policy/loss": 3.0, "policy/skipped": 1.0, "critic/loss": 4.0, "critic/skipped": 0.0,
    }  # fmt: skip
    assert math.isnan(over_updates(history[1:2])["policy/loss"])


def test_extremes_are_no_means():
    history = [
        {"policy/ratio_max": largest, "policy/ratio_min": 1 / largest, "policy/skipped": skipped}
        for largest, skipped in ((2.0, 0.0), (9.0, 1.0), (4.0, 0.0))
    ]
    found = over_updates(history)
    assert (found["policy/ratio_max"], found["policy/ratio_min"]) == (4.0, 0.25)


def test_extremes_of_a_step_do_not_depend_on_micro_batches(learner_run, stale):
    runs = [learner_run(minibatch_size=8, micro_batch=size) for size in (2, 8)]
    found = [run.step(batch_of(stale), run.moved)[1] for run in runs]
    for key in ("policy/ratio_max", "policy/ratio_min"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4)
    assert found[0]["policy/ratio_min"] < 0.8 and found[0]["policy/ratio_max"] > 1.2
