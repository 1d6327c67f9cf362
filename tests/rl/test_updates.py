"""The parts of an update: gradients summed over micro-batches, and the optimizer's steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sr1_jax.rl.aggregation import Totals, count_totals
from sr1_jax.rl.settings import default_config
from sr1_jax.rl.update import (
    Update,
    add_gradients,
    frozen_copy,
    make_optimizer,
    on_chip,
    place_model,
    rate_schedule,
)
from sr1_jax.sharding import make_mesh

CONSTANT = optax.constant_schedule(0.1)


class Rows(NamedTuple):
    trains_BT: jax.Array
    x_BTD: jax.Array
    y_BT: jax.Array


@pytest.mark.parametrize("cuts", [1, 2, 3, 4, 6, 12])
def test_accumulated_gradient_is_that_of_one_batch(cuts):
    rng = np.random.default_rng(0)
    counts_B = np.array([0, 12, 1, 3, 1, 1, 7, 0, 2, 1, 12, 5])
    trains_BT = (np.arange(12)[None] < counts_B[:, None]).astype(np.float32)
    x_BTD, y_BT, weight_D = rng.normal(size=(12, 12, 3)), rng.normal(size=(12, 12)), np.ones(3)

    def loss_fn(params, rows, totals):
        error_BT = (rows.x_BTD @ params["w"] - rows.y_BT) * rows.trains_BT
        count = jnp.maximum(rows.trains_BT.sum(), 1)
        terms = {"squared": jnp.sum(error_BT**2) / totals.tokens}
        terms["decay"] = (
            jnp.sum(params["w"] ** 2) * rows.trains_BT.any(axis=1).sum() / totals.sequences
        )
        return terms, {"error": error_BT.sum() / count}

    rows = jax.tree.map(lambda x: x.astype(np.float32), Rows(trains_BT, x_BTD, y_BT))
    params = {"w": jnp.asarray(weight_D, "float32")}
    add = jax.jit(functools.partial(add_gradients, loss_fn))
    grads, shares = {"w": jnp.zeros(3)}, []
    totals = count_totals(trains_BT, y_BT)
    for part in np.split(np.arange(12), cuts):
        micro_batch = Rows(*(x[part] for x in rows))
        grads, share = add(params, grads, micro_batch, totals)
        shares.append(share)
    metrics = jax.tree.map(lambda *x: sum(x), *shares)

    error_N = (x_BTD @ weight_D - y_BT)[trains_BT == 1]
    gradient_D = 2 * error_N @ x_BTD[trains_BT == 1] / counts_B.sum() + 2 * weight_D
    np.testing.assert_allclose(grads["w"], gradient_D, rtol=1e-5)
    np.testing.assert_allclose(metrics["squared"], np.mean(error_N**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["decay"], 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(error_N**2) + 3, rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], np.mean(error_N), rtol=1e-5)


def test_a_batch_without_a_trained_token_has_no_gradient():
    rows = Rows(jnp.zeros((3, 4)), jnp.ones((3, 4, 5)), jnp.ones((3, 4)))

    def loss_fn(params, rows, totals):
        return {"sum": jnp.sum((rows.x_BTD @ params) * rows.trains_BT)}, {"mean": jnp.ones(())}

    totals = Totals(*jnp.zeros(len(Totals._fields)))
    grads, metrics = add_gradients(loss_fn, jnp.ones(5), jnp.zeros(5), rows, totals)
    np.testing.assert_array_equal(grads, np.zeros(5))
    assert metrics["loss"] == metrics["mean"] == 0


def step_sizes(count, **schedule):
    """Of Adam with equal gradients, whose steps have the size of the rate."""
    optimizer = make_optimizer(rate_schedule(0.1, **schedule), default_config())
    params = jnp.zeros(1)
    state, sizes = optimizer.init(params), []
    for _ in range(count):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        sizes.append(-float(updates[0]))
    return sizes


def test_warm_up_is_linear_and_ends_at_the_rate():
    sizes = step_sizes(6, warmup_share=0.1, decay_share=0.0, updates=40)
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize("updates", [2, 10, 60])
def test_a_share_above_0_is_at_least_one_step(updates):
    sizes = step_sizes(3, warmup_share=0.01, decay_share=0.0, updates=updates)
    np.testing.assert_allclose(sizes, [0, 0.1, 0.1], rtol=1e-4)
    # A cosine of one step, also where there is no room for it.
    sizes = step_sizes(3, warmup_share=0.01, decay_share=0.02, updates=min(updates, 50))
    np.testing.assert_allclose(sizes, [0, 0.1, 0.01], rtol=1e-4)


@pytest.mark.parametrize("updates", [0, 1])
def test_a_run_without_a_second_update_has_no_warm_up(updates):
    sizes = step_sizes(2, warmup_share=0.285, decay_share=0.0, updates=updates)
    np.testing.assert_allclose(sizes, [0.1, 0.1], rtol=1e-4)


def test_shares_are_rounded_to_whole_steps():
    # The published warm-up: 0.285 of 1,005 steps.
    schedule = rate_schedule(1.0, warmup_share=0.285, decay_share=0.0, updates=1005)
    assert schedule(286) == 1 and schedule(285) == pytest.approx(285 / 286)


def test_without_a_warm_up_the_first_step_is_whole():
    optimizer = make_optimizer(CONSTANT, default_config())
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-5)


def test_adam_eps_is_added_to_the_root():
    """The first step is g / (|g| + eps) of the rate: hand numbers."""
    config = default_config()
    config.adam_eps = 0.25
    optimizer = make_optimizer(CONSTANT, config)
    gradients = jnp.array([0.75, -0.25, 0.0])
    updates, _ = optimizer.update(gradients, optimizer.init(gradients), jnp.zeros(3))
    np.testing.assert_allclose(updates, [-0.075, 0.05, 0.0], rtol=1e-5)


def test_weight_decay_pulls_towards_zero():
    config = default_config()
    config.weight_decay = 0.5
    optimizer = make_optimizer(CONSTANT, config)
    params = jnp.full(1, 2.0)
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 * 0.5 * 2.0], rtol=1e-5)


def test_the_rate_falls_along_a_cosine_to_a_tenth():
    sizes = step_sizes(8, warmup_share=0.2, decay_share=0.6, updates=10)
    down = [0.01 + 0.09 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(5)]
    np.testing.assert_allclose(sizes, [0, 0.05, *down, 0.01], rtol=1e-4)


def adam_moments(opt_state):
    def is_adam(x):
        return isinstance(x, optax.ScaleByAdamState)

    return next(x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x))


def test_a_first_moment_in_bfloat16_moves_the_parameters_almost_alike():
    """200 noisy steps: the ends differ by less than two hundredths of the way, and the second
    moment, which bfloat16 could not move, is float32."""
    ends = {}
    for dtype in ("float32", "bfloat16"):
        config = default_config()
        config.optimizer_dtype = dtype
        optimizer = make_optimizer(optax.constant_schedule(1e-3), config)
        rng = np.random.default_rng(0)
        mean = rng.normal(size=300)
        params = jnp.zeros(300)
        state, step = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(200):
            updates, state = step(
                jnp.asarray(mean + rng.normal(size=300), "float32"), state, params
            )
            params = optax.apply_updates(params, updates)
        moments = adam_moments(state)
        assert moments.mu.dtype == dtype and moments.nu.dtype == params.dtype == jnp.float32
        ends[dtype] = np.asarray(params)
    distance = np.linalg.norm(ends["bfloat16"] - ends["float32"])
    assert 0 < distance < 0.02 * np.linalg.norm(ends["float32"])


def test_an_offloaded_optimizer_takes_the_same_steps():
    """Moments rest in pinned host memory, counters and parameters on the device."""
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    optimizer = make_optimizer(optax.constant_schedule(1e-2), default_config())
    params = {
        "trunk": {"norm": {"scale": jnp.arange(1.0, 5.0)}},
        "head": {"kernel": jnp.ones((4, 2))},
    }
    ends = []
    for offload in (False, True):
        state = place_model(params, optimizer, mesh, offload_optimizer=offload)
        update = Update("policy", lambda *_: None, optimizer, state, mesh)
        for step in range(1, 4):
            grads = jax.tree.map(lambda x, step=step: jnp.sin(step * x), state.params)
            state, logged = update.apply(state, grads, np.float32(0.5), np.float32(1.0))
        moments = adam_moments(state.opt_state)
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves((moments.mu, moments.nu))}
        assert kinds == {"pinned_host" if offload else "device"}
        assert {x.sharding.memory_kind for x in jax.tree.leaves((state.params, moments.count))} == {
            "device"
        }
        back = on_chip(state.opt_state)
        assert {x.sharding.memory_kind for x in jax.tree.leaves(back)} == {"device"}
        ends.append((state.params, jax.device_get(state.opt_state), logged))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)
    assert not np.allclose(ends[0][0]["head"]["kernel"], 1.0)


def test_a_frozen_copy_has_matrices_in_the_compute_dtype():
    """Layers cast them to it anyway; a scale multiplies in float32."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    params = {
        "trunk": {"norm": {"scale": jnp.full(4, 1.001)}},
        "head": {"kernel": jnp.ones((4, 2))},
    }
    copy = frozen_copy(params, mesh, dtype="bfloat16", offload=False)
    assert copy["head"]["kernel"].dtype == jnp.bfloat16
    assert copy["trunk"]["norm"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(copy["trunk"]["norm"]["scale"], params["trunk"]["norm"]["scale"])
    assert not any(a is b for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(params)))
