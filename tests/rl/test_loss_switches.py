"""Dual clip, sequence ratio, displacement and importance weights against loops and hand numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from loss_batches import assert_gradient, random_batch, spoil

from sr1_jax.rl.aggregation import count_totals, token_weights
from sr1_jax.rl.losses import displacement_penalty, importance_weights, policy_loss

SEEDS = st.integers(0, 2**32 - 1)


# Dual clip


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "bounded"),
    [
        (2.0, -1.0, 2.0, 2.0, 0),  # PPO's loss grows with the ratio
        (4.0, -1.0, 3.0, 0.0, 1),  # but no further than c
        (4.0, -2.0, 6.0, 0.0, 1),
        (0.5, -1.0, 0.8, 0.0, 0),  # the lower clip is as ever
        (4.0, 1.0, -1.2, 0.0, 0),  # and so is the upper one
        (4.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_dual_clip_hand_numbers(ratio, advantage, loss, slope, bounded):
    ones = jnp.ones((1, 1))

    def of_logp(logp):
        return policy_loss(logp, 0 * ones, advantage * ones, ones, clip=0.2, dual_clip=3.0)

    (value, metrics), gradient = jax.value_and_grad(of_logp, has_aux=True)(np.log(ratio) * ones)
    assert value == pytest.approx(loss, rel=1e-6)
    assert gradient[0, 0] == pytest.approx(slope, rel=1e-6)
    assert metrics["dual_clip_fraction"] == bounded


@given(SEEDS, st.sampled_from([1.05, 1.5]))
def test_dual_clip_masked_equals_removed(seed, bound):
    logp, old, advantages, mask = random_batch(seed, 3)
    kept, terms = mask == 1, []
    for new, was, advantage in zip(logp[kept], old[kept], advantages[kept]):
        ratio = np.exp(new - was)
        least = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        terms.append(max(least, bound * advantage) if advantage < 0 else least)
    loss, _ = policy_loss(
        *(spoil(x, mask) for x in (logp, old, advantages)),
        jnp.asarray(mask),
        clip=0.2,
        dual_clip=bound,
    )
    assert loss == pytest.approx(-np.mean(terms), rel=1e-4, abs=1e-5)


# Ratio of a sequence


def gspo_loop(logp, old, advantages, mask, low, high):
    """GSPO, equations 5 and 7: the mean over sequences of the clipped sequence surrogate."""
    terms = []
    for row in range(len(mask)):
        kept = mask[row] == 1
        if kept.any():
            ratio = np.exp((logp[row, kept] - old[row, kept]).sum() / kept.sum())
            bounded = min(max(ratio, 1 - low), 1 + high)
            terms.append(min(ratio * advantages[row], bounded * advantages[row]))
    return -np.mean(terms)


@pytest.fixture(scope="module")
def sequences():
    """Log-probs, old ones, one advantage a sequence, and a mask with an empty row."""
    logp, old, advantages, mask = random_batch(5, 3, scale=0.8, shape=(6, 8))
    return logp, old, advantages[:, 0], mask


def sequence_loss(logp, old, advantages_B, mask, clip=(0.1, 0.2), per_row=1):
    """Of sequences as rows, or with so many of them in a row."""
    mask = jnp.asarray(mask)
    advantages = jnp.broadcast_to(jnp.asarray(advantages_B)[:, None], mask.shape)
    totals = count_totals(mask, advantages)
    packed = jnp.repeat(jnp.arange(len(mask)), mask.shape[1]) if per_row > 1 else None
    logp, old, advantages, mask, packed = (
        None if x is None else jnp.reshape(jnp.asarray(x), (len(advantages_B) // per_row, -1))
        for x in (logp, old, advantages, mask, packed)
    )
    weights = token_weights(
        mask,
        "sequence",
        tokens=totals.tokens,
        sequences=totals.sequences,
        sequence_BT=packed,
    )
    return policy_loss(
        logp,
        old,
        advantages,
        mask,
        clip=clip,
        ratio="sequence",
        weights_BT=weights,
        sequence_BT=packed,
    )


@pytest.mark.parametrize("per_row", [1, 2, 6])
def test_sequence_ratio_is_gspo(sequences, per_row):
    logp, old, advantages_B, mask = sequences
    loss, metrics = sequence_loss(
        spoil(logp, mask), spoil(old, mask), advantages_B, mask, per_row=per_row
    )
    assert loss == pytest.approx(gspo_loop(logp, old, advantages_B, mask, 0.1, 0.2), rel=1e-5)
    # All tokens of a sequence are clipped together.
    assert 0 < metrics["clip_fraction"] < 1
    kl = (old - logp)[mask == 1].mean()
    assert metrics["approx_kl"] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("per_row", [1, 3])
def test_sequence_ratio_spreads_its_gradient_over_the_sequence(sequences, per_row):
    logp, old, advantages_B, mask = sequences

    def loss(x, clip=(0.1, 0.2)):
        return sequence_loss(x, old, advantages_B, mask, clip=clip, per_row=per_row)[0]

    gradient = jax.grad(lambda x: loss(x, clip=9.0))(jnp.asarray(logp, "float32"))
    count = (mask.any(axis=1)).sum()
    for row in range(len(mask)):
        kept = mask[row] == 1
        if kept.any():
            ratio = np.exp((logp - old)[row, kept].mean())
            each = -ratio * advantages_B[row] / (count * kept.sum())
            np.testing.assert_allclose(gradient[row, kept], each, rtol=1e-4)
        np.testing.assert_array_equal(gradient[row, ~kept], 0.0)
    assert_gradient(loss, jnp.asarray(logp))


def test_sequences_of_one_token_have_the_ratio_of_the_token():
    logp, old, advantages, _ = (jnp.asarray(x, "float32") for x in random_batch(3, 3))
    mask = jnp.zeros(logp.shape).at[:, 4].set(1)
    one, other = (
        policy_loss(logp, old, advantages, mask, clip=0.1, ratio=ratio)[0]
        for ratio in ("token", "sequence")
    )
    assert one == pytest.approx(float(other), rel=1e-6)


# Displacement


@given(SEEDS)
def test_displacement_penalty_masked_equals_removed(seed):
    logp, old, advantages, mask = random_batch(seed, 3)
    advantages[np.abs(advantages) < 0.1] = 0.0
    lost = [
        max(0.0, was - new)
        for new, was, advantage in zip(logp[mask == 1], old[mask == 1], advantages[mask == 1])
        if advantage >= 0
    ]
    arrays = [spoil(x, mask) for x in (logp, old, advantages)]
    got = displacement_penalty(*arrays, jnp.asarray(mask))
    assert got == pytest.approx(np.mean(lost) if lost else 0.0, rel=1e-4, abs=1e-6)
    shared = displacement_penalty(*arrays, jnp.asarray(mask), count=40)
    assert shared == pytest.approx(sum(lost) / 40, rel=1e-4, abs=1e-6)


def test_displacement_penalty_hand_numbers():
    logp = jnp.array([[-1.0, -1.0, -1.0, -1.0]])
    old = jnp.array([[-0.5, -1.5, -0.25, -1.0]])
    advantages = jnp.array([[1.0, 1.0, -1.0, 0.0]])
    value, gradient = jax.value_and_grad(displacement_penalty)(
        logp, old, advantages, jnp.ones((1, 4))
    )
    assert value == pytest.approx(0.5 / 3)
    # Pulled up where it fell; a token that has not moved is left alone.
    np.testing.assert_allclose(gradient, [[-1 / 3, 0, 0, 0]], rtol=1e-6)


def test_displacement_gradient_ignores_garbage_at_masked_tokens():
    logp, old, advantages, mask = random_batch(2, 3)
    arrays = (spoil(old, mask), spoil(advantages, mask), jnp.asarray(mask))
    gradient = jax.grad(displacement_penalty)(spoil(logp, mask), *arrays)
    np.testing.assert_array_equal(gradient[mask == 0], 0.0)
    assert np.isfinite(gradient).all() and np.any(gradient != 0)
    assert_gradient(
        lambda x: displacement_penalty(x, *map(jnp.asarray, (old, advantages, mask))), logp
    )


# Importance weights


@given(SEEDS, st.sampled_from([0.5, 1.0, 2.0]))
def test_importance_weights_agree_with_numpy(seed, cap):
    logp, sampled, mask = random_batch(seed, 2)
    got, metrics = importance_weights(
        spoil(logp, mask), spoil(sampled, mask), jnp.asarray(mask), cap=cap
    )
    ratio = np.exp(logp - sampled)
    np.testing.assert_allclose(got, np.where(mask == 1, np.minimum(ratio, cap), 0), rtol=1e-5)
    valid = ratio[mask == 1]
    assert metrics["importance_mean"] == pytest.approx(np.minimum(valid, cap).mean(), rel=1e-5)
    assert metrics["importance_capped"] == pytest.approx((valid > cap).mean())


def test_importance_weights_are_data_and_stay_finite():
    ones = jnp.ones((1, 2))
    weights, _ = importance_weights(jnp.array([[200.0, -200.0]]), 0 * ones, ones, cap=2.0)
    np.testing.assert_allclose(weights, [[2.0, np.exp(-20)]], rtol=1e-5)
    gradient = jax.grad(lambda x: importance_weights(x, 0 * ones, ones, cap=2.0)[0].sum())(ones)
    np.testing.assert_array_equal(gradient, 0.0)


@given(SEEDS)
def test_weighted_advantages_are_a_weighted_surrogate(seed):
    """Why the learner may put the weights on the advantages."""
    logp, old, advantages, mask = (jnp.asarray(x, "float32") for x in random_batch(seed, 3))
    weights, _ = importance_weights(old, old - 0.3 * advantages, mask, cap=1.2)
    whole, _ = policy_loss(logp, old, advantages * weights, mask, clip=0.2)
    tokens, _ = policy_loss(
        logp, old, advantages, mask, clip=0.2, weights_BT=weights / jnp.maximum(mask.sum(), 1)
    )
    assert whole == pytest.approx(float(tokens), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(dual_clip=1.0), "dual_clip is 1.0; choose a number > 1, or None"),
        (dict(dual_clip=0.5), "dual_clip is 0.5"),
        (dict(ratio="batch"), "unknown ratio 'batch'; choose one of .*'token', 'sequence'"),
    ],
)
def test_errors(settings, message):
    ones = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=message):
        policy_loss(ones, ones, ones, ones, clip=0.2, **settings)
    with pytest.raises(ValueError, match="the cap of importance weights is 0"):
        importance_weights(ones, ones, ones, cap=0)


def test_weights_that_would_only_broadcast_are_refused():
    ones = jnp.ones((2, 2))
    # A run-time type checker, when one is switched on, gets there first.
    with pytest.raises((ValueError, TypeCheckError)):
        policy_loss(ones, ones, ones, ones, clip=0.2, weights_BT=jnp.ones((2, 1)))
