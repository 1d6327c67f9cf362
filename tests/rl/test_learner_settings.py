"""Settings of the learner that cannot work are refused, and what they stand for is derived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.rl.losses import kl_estimate
from sr1_jax.rl.settings import (
    ALGORITHMS,
    GROUP_ALGORITHMS,
    check_config,
    default_config,
    minibatches,
    needs_critic,
    optimizer_steps,
)
from sr1_jax.rl.update import rate_schedule


def settings(**changes):
    config = default_config()
    config.update(changes)
    return config


def test_what_is_known_of_algorithms():
    assert ALGORITHMS == ("ppo", "grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp")
    assert GROUP_ALGORITHMS == ("grpo", "dr_grpo", "rloo")
    assert [name for name in ALGORITHMS if needs_critic(settings(algorithm=name))] == ["ppo"]


@pytest.mark.parametrize(
    ("size", "trajectories", "epochs", "count"),
    [(256, 512, 1, 2), (256, 128, 1, 1), (256, 256, 3, 1), (64, 256, 2, 4)],
)
def test_minibatches_are_of_a_size_or_all_of_a_step(size, trajectories, epochs, count):
    config = settings(minibatch_size=size, epochs=epochs)
    assert minibatches(config, trajectories) == count
    assert optimizer_steps(config, trajectories, 7) == 7 * epochs * count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(minibatch_size=5), r"learner.minibatch_size=5 does not divide the 16 trajectories"),
        (dict(micro_batch=3), r"mini-batch of 16 .* micro-batches of learner.micro_batch=3"),
        (dict(packing=True, micro_batch=32), r"learner.micro_batch=32 packed rows are more"),
        (dict(decay_share=0.2, warmup_share=0.2), r"learner.decay_share=0.2 must exceed .* 0.2"),
        (
            dict(ratio="sequence"),
            r"of learner.algorithm=grpo, dr_grpo, rloo, reinforce; ppo has one a token",
        ),
        (dict(algorithm="a2c"), r"learner.algorithm must be one of ppo, grpo, .*, not 'a2c'"),
        (dict(kl_in="loss"), r"learner.kl_in='loss' with learner.kl_kind='k1' regularises nothing"),
        (
            dict(skip_zero_advantages=True),
            r"learner.skip_zero_advantages leaves out .* train all the same with "
            r"learner.algorithm='ppo', whose critic learns from all",
        ),
        (
            dict(skip_zero_advantages=True, algorithm="grpo"),
            r"train all the same with learner.entropy_coefficient=0.001; change one",
        ),
        (dict(importance_cap=2.0), r"learner.importance_cap needs learner.old_logp='trainer'"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(settings(**dict(micro_batch=8) | changes), 16)


def expected_gradient(kind, logits_V, ref_V):
    """Exact mean over the tokens the policy may sample of the gradient of the estimate."""

    def estimate(logits_V, token):
        return kl_estimate(jax.nn.log_softmax(logits_V)[token], ref_V[token], kind)

    p_V = jax.nn.softmax(logits_V)
    gradients_VV = jax.vmap(jax.grad(estimate), (None, 0))(logits_V, jnp.arange(len(p_V)))
    return p_V @ gradients_VV


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_in_the_loss_k1_pulls_nowhere_on_average(kind):
    """Why k1 is refused there, and k2 and k3 are not.

    With g the gradient of log p of a sampled token, which is 0 on average: that of k1 is g itself;
    that of k2 is (log p - log q) g, on average the gradient of KL(p || q); that of k3 is
    (1 - q / p) g, on average the gradient of KL(q || p).
    """
    rng = np.random.default_rng(0)
    logits_V = jnp.asarray(rng.normal(size=6), jnp.float32)
    ref_V = jax.nn.log_softmax(jnp.asarray(rng.normal(size=6), jnp.float32))
    got_V = expected_gradient(kind, logits_V, ref_V)

    def kl(logits_V, kind):
        logp_V = jax.nn.log_softmax(logits_V)
        if kind == "k2":
            return jnp.sum(jnp.exp(logp_V) * (logp_V - ref_V))
        return jnp.sum(jnp.exp(ref_V) * (ref_V - logp_V))

    want_V = jnp.zeros(6) if kind == "k1" else jax.grad(kl)(logits_V, kind)
    np.testing.assert_allclose(got_V, want_V, atol=1e-6)
    assert kind == "k1" or np.linalg.norm(want_V) > 0.1
    config = settings(kl_in="loss", kl_kind=kind)
    if kind != "k1":
        check_config(config, 256)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_run_of_one_update_trains_at_its_full_rate(decay):
    rate = rate_schedule(1e-3, warmup_share=0.285, decay_share=decay, updates=1)
    assert float(rate(0)) == pytest.approx(1e-3)
