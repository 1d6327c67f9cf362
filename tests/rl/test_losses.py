"""Losses against loops over the valid tokens only, and gradients against finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from loss_batches import assert_gradient, random_batch, spoil

from sr1_jax.rl.losses import KL_KINDS, kl_estimate, policy_loss, ratio_extremes, value_loss

SEEDS = st.integers(0, 2**32 - 1)


def policy_loss_loop(logp, old, advantages, low, high):
    """Equation 7 as written, over flat lists of valid tokens: loss, clip fraction, KL."""
    terms, clipped = [], 0
    for new, was, advantage in zip(logp, old, advantages):
        ratio = np.exp(new - was)
        bounded = min(max(ratio, 1 - low), 1 + high)
        terms.append(min(ratio * advantage, bounded * advantage))
        clipped += bounded * advantage < ratio * advantage
    return -np.mean(terms), clipped / len(terms), np.mean(old - logp)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([0.2, (0.2, 0.28), [0.1, 0.5], 0.0, (0.0, 0.3), (0.3, 0.0)]))
def test_policy_loss_masked_equals_removed(seed, clip):
    logp, old, advantages, mask = random_batch(seed, 3)
    low, high = clip if isinstance(clip, tuple | list) else (clip, clip)
    kept = mask == 1
    expected = policy_loss_loop(logp[kept], old[kept], advantages[kept], low, high)
    loss, metrics = policy_loss(
        spoil(logp, mask), spoil(old, mask), spoil(advantages, mask), jnp.asarray(mask), clip=clip
    )
    assert set(metrics) == {"clip_fraction", "approx_kl"}
    got = (loss, metrics["clip_fraction"], metrics["approx_kl"])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # gone too far up: constant 1.2
        (0.5, 2.0, -1.0, -1.0, 0),  # wrong way: pulled back without limit
        (0.5, -2.0, 1.6, 0.0, 1),
        (1.5, -2.0, 3.0, 3.0, 0),
        (1.5, 0.0, 0.0, 0.0, 0),
        (0.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_policy_loss_hand_numbers(ratio, advantage, loss, slope, clipped):
    def of_logp(logp):
        return policy_loss(
            logp, jnp.full((1, 1), -1.0), jnp.full((1, 1), advantage), jnp.ones((1, 1)), clip=0.2
        )

    logp = jnp.full((1, 1), -1.0 + np.log(ratio))
    (value, metrics), gradient = jax.value_and_grad(of_logp, has_aux=True)(logp)
    assert value == pytest.approx(loss, rel=1e-6)
    assert gradient[0, 0] == pytest.approx(slope, rel=1e-6)
    assert metrics["clip_fraction"] == clipped
    assert metrics["approx_kl"] == pytest.approx(-np.log(ratio), abs=1e-6)


@pytest.mark.parametrize("clip", [0.2, 0.0, (0.0, 0.0)])
def test_first_step_has_the_policy_gradient_whatever_the_clip(clip):
    # At r = 1 the gradient is -A / count, even where a zero-width range puts the edge there.
    _, _, advantages, mask = random_batch(0, 3)
    logp = jnp.full(mask.shape, -1.5)
    constants = (logp, jnp.asarray(advantages), jnp.asarray(mask))
    gradient = jax.grad(lambda x: policy_loss(x, *constants, clip=clip)[0])(logp)
    np.testing.assert_allclose(gradient, -advantages * mask / mask.sum(), rtol=1e-5, atol=1e-7)


def test_zero_clip_is_not_read_as_a_default():
    ratio = jnp.array([[1.1]])
    ones = jnp.ones((1, 1))
    loss, metrics = policy_loss(jnp.log(ratio), 0 * ones, ones, ones, clip=0.0)
    assert loss == -1.0
    assert metrics["clip_fraction"] == 1
    loss, metrics = policy_loss(jnp.log(ratio), 0 * ones, ones, ones, clip=0.2)
    assert loss == pytest.approx(-1.1)
    assert metrics["clip_fraction"] == 0


def test_policy_loss_gradient_agrees_with_finite_differences():
    logp, old, advantages, mask = (jnp.asarray(x) for x in random_batch(1, 3))
    assert_gradient(lambda x: policy_loss(x, old, advantages, mask, clip=0.2)[0], logp)


def test_policy_loss_gradient_ignores_garbage_at_masked_tokens():
    logp, old, advantages, mask = random_batch(2, 3)
    gradient_of = jax.jit(
        jax.grad(lambda x, o, a, m: policy_loss(x, o, a, m, clip=0.2)[0], argnums=(0, 1, 2))
    )
    clean = gradient_of(logp, old, advantages, mask)
    spoiled = gradient_of(spoil(logp, mask), spoil(old, mask), spoil(advantages, mask), mask)
    for one, other in zip(clean, spoiled):
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_array_equal(other[mask == 0], 0.0)
    assert np.abs(spoiled[0]).max() > 0
    # Old log-probabilities and advantages are data.
    np.testing.assert_array_equal(spoiled[1], 0.0)
    np.testing.assert_array_equal(spoiled[2], 0.0)


@pytest.mark.parametrize("log_ratio", [-200.0, 200.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_policy_loss_survives_extreme_ratios(log_ratio, advantage):
    ones = jnp.ones((1, 1))
    value, gradient = jax.value_and_grad(
        lambda x: policy_loss(x, 0 * ones, advantage * ones, ones, clip=0.2)[0]
    )(log_ratio * ones)
    assert np.isfinite(value)
    assert gradient[0, 0] == 0.0


def test_a_nan_at_a_valid_token_is_not_hidden():
    ones = jnp.ones((1, 2))
    bad = jnp.array([[0.0, jnp.nan]])
    assert np.isnan(policy_loss(bad, ones, ones, ones, clip=0.2)[0])
    assert np.isnan(value_loss(bad, ones, ones, ones, clip=0.2)[0])
    assert all(np.isnan(kl_estimate(bad, ones, kind)[0, 1]) for kind in KL_KINDS)


def test_losses_of_an_empty_mask_are_zero():
    bad, none = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3))
    for loss in (policy_loss, value_loss):
        (value, metrics), gradient = jax.value_and_grad(
            lambda x, loss=loss: loss(x, bad, bad, none, clip=0.2), has_aux=True
        )(bad)
        assert value == 0
        assert all(metric == 0 for metric in metrics.values())
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (-0.1, "lower clip bound is -0.1"),
        ((0.1, -0.2), "upper clip bound is -0.2"),
        (float("nan"), "clip bound is nan"),
        ((0.1, 0.2, 0.3), "3 entries"),
        (None, "clip is None"),
    ],
)
def test_policy_loss_refuses_bad_clips(clip, message):
    ones = jnp.ones((1, 1))
    # A run-time type checker, when one is switched on, refuses None first, in its own words.
    with pytest.raises((ValueError, TypeCheckError), match=message if clip is not None else None):
        policy_loss(ones, ones, ones, ones, clip=clip)


def value_loss_loop(values, old, returns, clip):
    terms, clipped = [], 0
    for value, was, target in zip(values, old, returns):
        bounded = value if clip is None else was + min(max(value - was, -clip), clip)
        plain, other = (value - target) ** 2, (bounded - target) ** 2
        terms.append(0.5 * max(plain, other))
        clipped += other > plain + 1e-12
    return np.mean(terms), clipped / len(terms)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([None, 0.5, 0.1, 0.0]))
def test_value_loss_masked_equals_removed(seed, clip):
    values, old, returns, mask = random_batch(seed, 3)
    kept = mask == 1
    expected = value_loss_loop(values[kept], old[kept], returns[kept], clip)
    loss, metrics = value_loss(
        spoil(values, mask), spoil(old, mask), spoil(returns, mask), jnp.asarray(mask), clip=clip
    )
    assert set(metrics) == {"clip_fraction"}
    np.testing.assert_allclose((loss, metrics["clip_fraction"]), expected, atol=1e-5)
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize(
    ("value", "clip", "loss", "slope", "clipped"),
    [
        (2.0, None, 0.5, -1.0, 0),
        (2.0, 0.5, 1.125, 0.0, 1),  # towards the target by 1, only 0.5 counts: (1.5 - 3)^2 / 2
        (1.25, 0.5, 1.53125, -1.75, 0),  # inside the range
        (0.0, 0.5, 4.5, -3.0, 0),  # away from the target: the plain error is larger
        (2.0, 0.0, 2.0, 0.0, 1),  # (1 - 3)^2 / 2
        (1.5, 0.5, 1.125, -1.5, 0),  # on the edge: not clipped
    ],
)
def test_value_loss_hand_numbers(value, clip, loss, slope, clipped):
    # Old value 1, return 3.
    def of_value(values):
        return value_loss(
            values, jnp.full((1, 1), 1.0), jnp.full((1, 1), 3.0), jnp.ones((1, 1)), clip=clip
        )

    (got, metrics), gradient = jax.value_and_grad(of_value, has_aux=True)(jnp.full((1, 1), value))
    assert got == pytest.approx(loss)
    assert gradient[0, 0] == pytest.approx(slope)
    assert metrics["clip_fraction"] == clipped


@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss_gradient(clip):
    values, old, returns, mask = random_batch(3, 3)
    constants = [jnp.asarray(x) for x in (old, returns, mask)]
    assert_gradient(lambda x: value_loss(x, *constants, clip=clip)[0], jnp.asarray(values))
    gradient_of = jax.grad(lambda *arrays: value_loss(*arrays, clip=clip)[0], argnums=(0, 1, 2))
    arrays = [jnp.asarray(x, jnp.float32) for x in (values, old, returns)]
    clean = gradient_of(*arrays, jnp.asarray(mask))
    spoiled = gradient_of(*(spoil(x, mask) for x in arrays), jnp.asarray(mask))
    for one, other in zip(clean, spoiled):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(spoiled[0]).max() > 0
    np.testing.assert_array_equal(spoiled[1], 0.0)
    np.testing.assert_array_equal(spoiled[2], 0.0)


def test_value_loss_refuses_a_negative_clip():
    ones = jnp.ones((1, 1))
    with pytest.raises(ValueError, match=r"value clip is -0\.5"):
        value_loss(ones, ones, ones, ones, clip=-0.5)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([0.01, 1.0, 8.0]))
def test_kl_estimates_agree_with_numpy(seed, scale):
    logp, ref, _ = random_batch(seed, 2, scale=scale)
    difference = ref - logp
    expected = {
        "k1": logp - ref,
        "abs": np.abs(logp - ref),
        "k2": (logp - ref) ** 2 / 2,
        "k3": np.clip(np.exp(difference) - 1 - difference, -10, 10),
    }
    assert set(expected) == set(KL_KINDS)
    for kind, want in expected.items():
        got = kl_estimate(jnp.asarray(logp), jnp.asarray(ref), kind)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        assert got.dtype == jnp.float32


def test_kl_estimates_in_expectation():
    """Summed over the vocabulary with the policy's weights, k1 and k3 both give the exact KL."""
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    exact = np.sum(policy * np.log(policy / reference))
    for kind in ("k1", "k3"):
        kl = kl_estimate(jnp.log(policy), jnp.log(reference), kind)
        assert np.sum(policy * np.asarray(kl)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("difference", [-1000.0, -0.7, 0.0, 1e-4, 0.7, 1000.0])
def test_k3_is_bounded_and_its_gradient_finite(difference):
    value, gradient = jax.value_and_grad(lambda x: kl_estimate(x, jnp.float32(difference), "k3"))(
        jnp.float32(0.0)
    )
    if abs(difference) > 20:
        assert (value, gradient) == (10.0, 0.0)
    else:
        assert value == pytest.approx(np.expm1(difference) - difference, rel=1e-3, abs=1e-10)
        # d/dlogp of exp(d) - 1 - d with d = ref - logp.
        assert gradient == pytest.approx(1 - np.exp(difference), rel=1e-3)


@pytest.mark.parametrize("kind", KL_KINDS)
def test_kl_gradient_with_garbage_at_masked_tokens(kind):
    logp, ref, mask = random_batch(4, 2)
    mask = jnp.asarray(mask)
    gradient_of = jax.grad(lambda x, r: kl_estimate(x, r, kind, mask_BT=mask).sum())
    clean = gradient_of(jnp.asarray(logp), jnp.asarray(ref))
    spoiled = gradient_of(spoil(logp, mask), spoil(ref, mask))
    np.testing.assert_allclose(spoiled, clean, atol=1e-6)
    got = kl_estimate(spoil(logp, mask), spoil(ref, mask), kind, mask_BT=mask)
    want = kl_estimate(jnp.asarray(logp), jnp.asarray(ref), kind) * mask
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("kind", KL_KINDS)
def test_kl_gradient_agrees_with_finite_differences(kind):
    logp, ref, _ = (jnp.asarray(x) for x in random_batch(5, 2))
    assert_gradient(lambda x: kl_estimate(x, ref, kind), logp)


def test_unknown_kl_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'k4'.*'k1', 'abs', 'k2', 'k3'"):
        kl_estimate(jnp.zeros((1, 1)), jnp.zeros((1, 1)), "k4")


def test_shapes_that_would_only_broadcast_are_refused():
    wide, narrow = jnp.ones((2, 3)), jnp.ones((2, 1))
    with pytest.raises((ValueError, TypeCheckError)):
        policy_loss(wide, wide, narrow, wide, clip=0.2)
    with pytest.raises((ValueError, TypeCheckError)):
        value_loss(wide, wide, narrow, wide, clip=0.2)
    with pytest.raises((ValueError, TypeCheckError)):
        kl_estimate(wide, narrow, "k1")
    with pytest.raises((ValueError, TypeCheckError)):
        kl_estimate(wide, wide, "k1", mask_BT=narrow)


def test_extremes_of_the_ratio():
    """Of tokens that train, whatever the others hold; nothing trains: 1 and 1."""
    rng = np.random.default_rng(3)
    logp_BT, old_BT = rng.normal(size=(2, 3, 5)).astype(np.float32)
    mask_BT = np.array([[0, 1, 1, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], np.float32)
    ratios = [
        math.exp(logp_BT[b, t] - old_BT[b, t]) for b in range(3) for t in range(5) if mask_BT[b, t]
    ]
    logp_BT[0, 0], old_BT[1, 1] = np.nan, -np.inf
    found = ratio_extremes(logp_BT, old_BT, mask_BT)
    np.testing.assert_allclose(found["ratio_max"], max(*ratios, 1), rtol=1e-5)
    np.testing.assert_allclose(found["ratio_min"], min(*ratios, 1), rtol=1e-5)
    assert min(ratios) < 1 < max(ratios)
    assert ratio_extremes(logp_BT, old_BT, 0 * mask_BT) == {"ratio_max": 1, "ratio_min": 1}
