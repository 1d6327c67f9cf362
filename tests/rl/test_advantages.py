"""Advantages against NumPy loops, with masked tokens deleted rather than skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from sr1_jax.rl.advantages import (
    gae,
    group_centred,
    group_relative,
    leave_one_out,
    nothing_to_compare,
    reinforce_pp,
    whiten,
)
from sr1_jax.rl.masked import masked_mean, require_same_shape

SEEDS = st.integers(0, 2**32 - 1)


def textbook_gae(rewards, values, gamma, lam):
    """Sum of discounted temporal differences of one unmasked trajectory, in float64."""
    following = np.append(values[1:], 0.0)
    deltas = rewards + gamma * following - values
    return np.array(
        [
            sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas)))
            for t in range(len(deltas))
        ]
    )


def random_batch(seed, batch=4, tokens=9):
    """Rewards, values and a mask with an empty, a full and two ragged rows."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((batch, tokens)) < 0.5).astype(np.int32)
    mask[0], mask[1] = 0, 1
    return rng.normal(size=(batch, tokens)), rng.normal(size=(batch, tokens)), mask


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([(1.0, 1.0), (0.9, 0.8), (0.99, 0.0), (0.0, 0.5)]))
def test_gae_masked_equals_removed(seed, rates):
    gamma, lam = rates
    rewards, values, mask = random_batch(seed)
    expected = np.zeros_like(rewards)
    for row in range(len(mask)):
        kept = mask[row] == 1
        expected[row, kept] = textbook_gae(rewards[row, kept], values[row, kept], gamma, lam)
    # What stands at masked tokens must not matter.
    garbage = np.where(mask == 1, 0.0, np.array([np.inf, np.nan, -np.inf] * 3))
    advantages, returns = gae(
        jnp.asarray(rewards + garbage),
        jnp.asarray(values + garbage),
        jnp.asarray(mask),
        gamma=gamma,
        lam=lam,
    )
    np.testing.assert_allclose(advantages, expected, atol=2e-5)
    np.testing.assert_allclose(returns, np.where(mask == 1, expected + values, 0.0), atol=2e-5)
    assert advantages.dtype == returns.dtype == jnp.float32


def test_gae_hand_numbers_step_over_an_observation():
    # Two policy tokens, two observation tokens, one policy token that earns the reward.
    advantages, returns = gae(
        jnp.array([[0.0, 0.0, 0.0, 0.0, 1.0]]),
        jnp.array([[0.5, 0.25, 7.0, 7.0, 0.75]]),
        jnp.array([[1, 1, 0, 0, 1]]),
        gamma=0.5,
        lam=0.5,
    )
    # delta: 1 - 0.75 = 0.25; 0.5 * 0.75 - 0.25 = 0.125; 0.5 * 0.25 - 0.5 = -0.375
    np.testing.assert_allclose(advantages, [[-0.328125, 0.1875, 0, 0, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0.171875, 0.4375, 0, 0, 1.0]], rtol=1e-6)


def test_gae_undiscounted_returns_are_the_outcome():
    _, values, mask = random_batch(3)
    rewards = np.zeros_like(values)
    rewards[1, -1] = 2.0
    _, returns = gae(
        jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), gamma=1.0, lam=1.0
    )
    np.testing.assert_allclose(returns[1], 2.0, rtol=1e-5)
    np.testing.assert_allclose(returns[2:], 0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.float32, jnp.int32])
def test_gae_under_jit_with_any_mask_dtype(dtype):
    rewards, values, mask = (jnp.asarray(x) for x in random_batch(5))
    expected = gae(rewards, values, mask, gamma=0.9, lam=0.9)
    compiled = jax.jit(lambda r, v, m: gae(r, v, m, gamma=0.9, lam=0.9))
    for got, want in zip(compiled(rewards, values, mask.astype(dtype)), expected):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_gae_computes_in_float32_from_bfloat16_values():
    rewards, values, mask = (jnp.asarray(x) for x in random_batch(6))
    low = values.astype(jnp.bfloat16)
    got = gae(rewards, low, mask, gamma=0.9, lam=0.9)
    want = gae(rewards, low.astype(jnp.float32), mask, gamma=0.9, lam=0.9)
    for one, other in zip(got, want):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([1e-25, 1e-3, 1.0, 1e25]), st.sampled_from([0.0, 100.0]))
def test_whiten_agrees_with_numpy(seed, scale, offset):
    x, _, mask = random_batch(seed)
    x = ((x + offset) * scale).astype(np.float32)
    got = np.asarray(whiten(jnp.asarray(np.where(mask == 1, x, np.nan)), jnp.asarray(mask)))
    valid = x[mask == 1].astype(np.float64) / scale
    np.testing.assert_allclose(
        got[mask == 1], (valid - valid.mean()) / valid.std(ddof=1), atol=2e-4
    )
    assert (got[mask == 0] == 0).all()
    assert got[mask == 1].mean() == pytest.approx(0, abs=1e-5)
    assert got[mask == 1].var(ddof=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("valid_tokens", [0, 1])
def test_whiten_of_too_few_tokens_is_zero(valid_tokens):
    mask = jnp.array([[1] * valid_tokens + [0] * (4 - valid_tokens)])
    np.testing.assert_array_equal(whiten(jnp.array([[3.0, 5.0, 7.0, 1.0]]), mask), 0.0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.1, 1e-30])
def test_whiten_of_equal_tokens_is_zero_not_amplified_rounding(value):
    mask = np.ones((37, 101), np.int32)
    mask[:, ::7] = 0
    got = whiten(jnp.full(mask.shape, value), jnp.asarray(mask))
    np.testing.assert_array_equal(got, 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-4, 1e-3, 1.0, 1e30])
def test_whiten_leaves_small_differences_small(scale):
    x, _, mask = random_batch(3)
    got = np.asarray(
        whiten(jnp.asarray((x * scale).astype(np.float32)), jnp.asarray(mask), eps=1e-8)
    )
    valid = x[mask == 1].astype(np.float64) * scale
    want = (valid - valid.mean()) / np.sqrt(valid.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(got[mask == 1], want, atol=2e-4)


def test_whiten_does_not_hide_a_nan_of_a_valid_token():
    got = whiten(jnp.array([[1.0, jnp.nan, 2.0, 3.0]]), jnp.array([[1, 1, 1, 0]]))
    assert np.isnan(got[0, :3]).all()
    assert got[0, 3] == 0


def group_relative_loop(scores, groups, eps):
    advantages = np.array(scores, np.float64)
    for index, group in enumerate(groups):
        members = [s for s, g in zip(scores, groups) if g == group]
        if len(members) > 1:
            mean = sum(members) / len(members)
            variance = sum((m - mean) ** 2 for m in members) / (len(members) - 1)
            advantages[index] = (scores[index] - mean) / (variance**0.5 + eps)
    return advantages


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([1e-6, 0.1]))
def test_group_relative_agrees_with_a_loop(seed, eps):
    rng = np.random.default_rng(seed)
    groups = rng.choice([-7, 0, 3, 2**31 - 1], size=8).astype(np.int32)
    scores = rng.integers(0, 5, size=8) / 4
    got = group_relative(jnp.asarray(scores), jnp.asarray(groups), eps=eps)
    np.testing.assert_allclose(got, group_relative_loop(scores, groups, eps), rtol=1e-4, atol=1e-5)
    compiled = jax.jit(group_relative, static_argnames="eps")(scores, groups, eps=eps)
    np.testing.assert_allclose(compiled, got, atol=1e-6)


def test_group_relative_hand_numbers():
    # Group 5: scores 1, 0, 0, 1, unbiased std sqrt(1/3). Group 9: one member. Group 2: all equal.
    got = group_relative(
        jnp.array([1.0, 0.7, 0.0, 0.1, 0.0, 0.1, 1.0, 0.1]), jnp.array([5, 9, 5, 2, 5, 2, 5, 2])
    )
    half = 0.5 * 3**0.5
    np.testing.assert_allclose(got, [half, 0.7, -half, 0, -half, 0, half, 0], rtol=1e-5)
    assert got.dtype == jnp.float32


def test_equal_scores_give_exact_zeros():
    got = group_relative(jnp.full(3, 0.1), jnp.zeros(3, jnp.int32), eps=0.0)
    np.testing.assert_array_equal(got, 0.0)


def test_group_ids_of_64_bits_are_kept_apart():
    groups = np.array([1, 1 + 2**32, 1, 1 + 2**32])
    got = group_relative(jnp.array([0.0, 10.0, 1.0, 12.0]), groups)
    half = 0.5**0.5
    np.testing.assert_allclose(got, [-half, -half, half, half], rtol=1e-5)


def leave_one_out_loop(scores, groups):
    advantages = np.array(scores, np.float64)
    for index, group in enumerate(groups):
        others = [s for i, (s, g) in enumerate(zip(scores, groups)) if g == group and i != index]
        if others:
            advantages[index] = scores[index] - sum(others) / len(others)
    return advantages


def group_centred_loop(scores, groups):
    advantages = np.array(scores, np.float64)
    for index, group in enumerate(groups):
        members = [s for s, g in zip(scores, groups) if g == group]
        if len(members) > 1:
            advantages[index] = scores[index] - sum(members) / len(members)
    return advantages


GROUP_ADVANTAGES = [
    (group_relative, lambda scores, groups: group_relative_loop(scores, groups, 1e-6)),
    (group_centred, group_centred_loop),
    (leave_one_out, leave_one_out_loop),
]


@pytest.mark.parametrize(("function", "loop"), GROUP_ADVANTAGES)
@given(seed=SEEDS)
def test_group_advantages_masked_equals_removed(function, loop, seed):
    """A trajectory that does not count leaves no trace in the baseline of its group."""
    rng = np.random.default_rng(seed)
    groups, valid = rng.integers(0, 3, size=10), rng.random(10) < 0.7
    scores = rng.integers(0, 5, size=10) / 4
    expected = np.zeros(10)
    expected[valid] = loop(scores[valid], groups[valid])
    for group in set(groups):
        if (groups == group).sum() > 1 == (valid & (groups == group)).sum():
            expected[groups == group] = 0
    spoiled = jnp.asarray(np.where(valid, scores, np.nan))
    got = function(spoiled, groups, valid_B=jnp.asarray(valid))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    compiled = jax.jit(function)(spoiled, groups, valid_B=valid.astype("f4"))
    np.testing.assert_allclose(compiled, got, atol=1e-6)


@pytest.mark.parametrize("function", [group_relative, group_centred, leave_one_out])
def test_the_only_one_left_of_a_group_has_no_advantage(function):
    """It has nothing to be compared with; a group of one by configuration keeps its score."""
    scores, groups = jnp.array([0.2, 1.0, 1.0, 0.2, 1.0]), jnp.array([4, 4, 4, 7, 8])
    got = function(scores, groups, valid_B=jnp.array([1, 0, 0, 1, 1]))
    np.testing.assert_allclose(got, [0, 0, 0, 0.2, 1.0], rtol=1e-6)


def test_group_baselines_hand_numbers():
    scores, groups = jnp.array([1.0, 0.7, 0.0, 0.0, 1.0, 0.0]), jnp.array([5, 9, 5, 5, 5, 5])
    got = group_centred(scores, groups)
    np.testing.assert_allclose(got, [0.6, 0.7, -0.4, -0.4, 0.6, -0.4], rtol=1e-6)
    got = leave_one_out(scores, groups)
    np.testing.assert_allclose(got, [0.75, 0.7, -0.5, -0.5, 0.75, -0.5], rtol=1e-6)


@pytest.mark.parametrize("function", [group_centred, leave_one_out])
def test_equal_scores_give_exact_zeros_without_a_division_too(function):
    scores = jnp.full(3, 0.1)
    np.testing.assert_array_equal(function(scores, jnp.zeros(3, jnp.int32)), 0.0)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([1.0, 0.9]))
def test_reinforce_pp_masked_equals_removed(seed, gamma):
    rewards, _, mask = random_batch(seed)
    to_go = np.full(rewards.shape, np.nan)
    for row in range(len(mask)):
        kept = np.flatnonzero(mask[row])
        for place, index in enumerate(kept):
            following = rewards[row, kept[place:]]
            to_go[row, index] = sum(gamma**k * reward for k, reward in enumerate(following))
    valid = to_go[mask == 1]
    expected = np.where(mask == 1, (to_go - valid.mean()) / valid.std(ddof=1), 0.0)
    spoiled = jnp.asarray(np.where(mask == 1, rewards, np.inf))
    got = reinforce_pp(spoiled, jnp.asarray(mask), gamma=gamma)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_reinforce_pp_hand_numbers():
    # Rewards to go: 3, 2, 2 in the first row, -1 in the second; mean 1.5, variance 3.
    got = reinforce_pp(
        jnp.array([[1.0, 9.0, 0.0, 2.0], [-1.0, 9.0, 9.0, 9.0]]),
        jnp.array([[1, 0, 1, 1], [1, 0, 0, 0]]),
    )
    root = 3**0.5
    want = [[1.5 / root, 0, 0.5 / root, 0.5 / root], [-2.5 / root, 0, 0, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_nan_score_stays_in_its_group():
    got = group_relative(jnp.array([jnp.nan, 0.0, 1.0, 3.0]), jnp.array([1, 1, 2, 2]))
    assert np.isnan(got[:2]).all()
    np.testing.assert_allclose(got[2:], [-(0.5**0.5), 0.5**0.5], rtol=1e-5)


def test_masked_mean():
    x = jnp.array([[1.0, jnp.nan, 3.0], [jnp.inf, 8.0, -jnp.inf]])
    mask = jnp.array([[1, 0, 1], [0, 1, 0]])
    assert masked_mean(x, mask) == 4.0
    assert masked_mean(x, mask.astype(bool)) == 4.0
    np.testing.assert_allclose(jax.grad(masked_mean)(x, mask), np.asarray(mask) / 3, rtol=1e-6)


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    x = jnp.full((2, 3), jnp.nan)
    value, gradient = jax.value_and_grad(masked_mean)(x, jnp.zeros((2, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_shapes_that_would_only_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"same shape: x \(2, 3\), mask \(2, 1\)"):
        require_same_shape(x=np.zeros((2, 3)), mask=np.zeros((2, 1)))
    wide, narrow = jnp.ones((2, 3)), jnp.ones((2, 1))
    # A run-time type checker, when one is switched on, gets there first.
    with pytest.raises((ValueError, TypeCheckError)):
        gae(wide, wide, narrow, gamma=1.0, lam=1.0)
    with pytest.raises((ValueError, TypeCheckError)):
        whiten(wide, narrow)
    with pytest.raises((ValueError, TypeCheckError)):
        masked_mean(wide, narrow)
    with pytest.raises((ValueError, TypeCheckError)):
        group_relative(jnp.ones(3), jnp.array([1]))


def test_groups_with_nothing_to_compare():
    scores = jnp.array([1.0, 1.0, 0.0, 1.0, 0.5, 7.0, 1.0, 2.0, 3.0, 4.0])
    group = jnp.array([3, 3, 5, 5, 8, 3, 8, 9, 4, 4])
    valid = jnp.array([1, 1, 1, 1, 1, 0, 0, 1, 0, 0])
    got = nothing_to_compare(scores, group, valid_B=valid)
    # Group 3 without the one that does not count; 5 differs; of 8 one member is left, of 4 none;
    # 9 is one by design.
    np.testing.assert_array_equal(got, [1, 1, 0, 0, 1, 1, 1, 0, 1, 1])
