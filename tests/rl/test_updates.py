"""The parts of an update: gradients summed over micro-batches, and the optimizer's steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.rl.settings import default_config
from sr1_jax.rl.update import add_gradients, make_optimizer


class Rows(NamedTuple):
    mask_BT: jax.Array
    x_BTD: jax.Array
    y_BT: jax.Array


@pytest.mark.parametrize("cuts", [1, 2, 3, 4, 6, 12])
def test_accumulated_gradient_is_that_of_one_batch(cuts):
    rng = np.random.default_rng(0)
    counts_B = np.array([0, 12, 1, 3, 1, 1, 7, 0, 2, 1, 12, 5])
    mask_BT = (np.arange(12)[None] < counts_B[:, None]).astype(np.float32)
    x_BTD, y_BT, weight_D = rng.normal(size=(12, 12, 3)), rng.normal(size=(12, 12)), np.ones(3)

    def loss_fn(params, rows):
        error_BT = (rows.x_BTD @ params["w"] - rows.y_BT) * rows.mask_BT
        count = jnp.maximum(rows.mask_BT.sum(), 1)
        return jnp.sum(error_BT**2) / count, {"error": error_BT.sum() / count}

    rows = jax.tree.map(lambda x: x.astype(np.float32), Rows(mask_BT, x_BTD, y_BT))
    params = {"w": jnp.asarray(weight_D, "float32")}
    add = jax.jit(functools.partial(add_gradients, loss_fn))
    grads, shares = {"w": jnp.zeros(3)}, []
    for part in np.split(np.arange(12), cuts):
        micro_batch = Rows(*(x[part] for x in rows))
        grads, share = add(params, grads, micro_batch, counts_B.sum())
        shares.append(share)
    metrics = jax.tree.map(lambda *x: sum(x), *shares)

    error_N = (x_BTD @ weight_D - y_BT)[mask_BT == 1]
    gradient_D = 2 * error_N @ x_BTD[mask_BT == 1] / counts_B.sum()
    np.testing.assert_allclose(grads["w"], gradient_D, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(error_N**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], np.mean(error_N), rtol=1e-5)


def test_a_batch_without_a_trained_token_has_no_gradient():
    rows = Rows(jnp.zeros((3, 4)), jnp.ones((3, 4, 5)), jnp.ones((3, 4)))

    def loss_fn(params, rows):
        return jnp.sum((rows.x_BTD @ params) * rows.mask_BT), {}

    grads, metrics = add_gradients(loss_fn, jnp.ones(5), jnp.zeros(5), rows, 0)
    np.testing.assert_array_equal(grads, np.zeros(5))
    assert metrics["loss"] == 0


def test_warm_up_is_linear_and_ends_at_the_rate():
    config = default_config()
    optimizer = make_optimizer(0.1, 4, config)
    params = jnp.zeros(1)
    state, sizes = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        sizes.append(-float(updates[0]))
    # With equal gradients Adam's steps have the size of the rate.
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-4)


def test_without_a_warm_up_the_first_step_is_whole():
    optimizer = make_optimizer(0.1, 0, default_config())
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-5)


def test_weight_decay_pulls_towards_zero():
    config = default_config()
    config.weight_decay = 0.5
    optimizer = make_optimizer(0.1, 0, config)
    params = jnp.full(1, 2.0)
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 * 0.5 * 2.0], rtol=1e-5)


def test_the_rate_falls_along_a_cosine_to_a_tenth():
    config = default_config()
    config.decay_steps = 6
    optimizer = make_optimizer(0.1, 2, config)
    params = jnp.zeros(1)
    state, sizes = optimizer.init(params), []
    for _ in range(8):
        updates, state = optimizer.update(jnp.ones(1), state, params)
        sizes.append(-float(updates[0]))
    down = [0.01 + 0.09 * (1 + np.cos(np.pi * step / 4)) / 2 for step in range(5)]
    np.testing.assert_allclose(sizes, [0, 0.05, *down, 0.01], rtol=1e-4)
