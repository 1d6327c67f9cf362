"""Token weights against loops over sequences, whole and cut into micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.rl.aggregation import (
    AGGREGATIONS,
    count_totals,
    sequence_sums,
    token_weights,
    weighted_sum,
)


def random_rows(seed, rows=6, tokens=7):
    """Losses and a mask with an empty row, a full one and one of a single token."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((rows, tokens)) < 0.5).astype(np.float32)
    mask[0], mask[1], mask[2] = 0, 1, np.arange(tokens) == 3
    return rng.normal(size=mask.shape), mask


def aggregate_loop(losses, mask, aggregation, constant):
    """The formulas as written, over lists of sequences that have tokens."""
    sequences = [x[m == 1] for x, m in zip(losses, mask) if m.any()]
    if aggregation == "token":
        return np.concatenate(sequences).mean()
    if aggregation == "sequence":
        return np.mean([sequence.mean() for sequence in sequences])
    return sum(sequence.sum() for sequence in sequences) / (len(sequences) * constant)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.sampled_from([1, 2, 3, 6]))
def test_weights_of_any_cut_give_the_loss_of_the_whole(aggregation, seed, cuts):
    losses, mask = random_rows(seed)
    totals = count_totals(mask, jnp.asarray(losses))
    spoiled = np.where(mask == 1, losses, np.nan)
    parts = []
    for part in np.split(np.arange(len(mask)), cuts):
        weights = token_weights(
            mask[part],
            aggregation,
            tokens=totals.tokens,
            sequences=totals.sequences,
            constant=13,
        )
        assert weights.dtype == jnp.float32
        assert not np.any(np.asarray(weights)[mask[part] == 0])
        parts.append(weighted_sum(jnp.asarray(spoiled[part], "float32"), weights))
    want = aggregate_loop(losses, mask, aggregation, 13)
    assert float(sum(parts)) == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_the_aggregations_differ():
    losses, mask = random_rows(0)
    values = [aggregate_loop(losses, mask, aggregation, 13) for aggregation in AGGREGATIONS]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3


def test_hand_numbers():
    mask = jnp.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    weights = {
        name: token_weights(mask, name, tokens=3, sequences=2, constant=5) for name in AGGREGATIONS
    }
    third, fifth = 1 / 3, 0.5 / 5
    np.testing.assert_allclose(weights["token"], mask * third, rtol=1e-6)
    np.testing.assert_allclose(
        weights["sequence"], [[0.25, 0, 0.25], [0, 0.5, 0], [0, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(weights["constant"], mask * fifth, rtol=1e-6)


def test_totals():
    mask = jnp.array([[1.0, 0, 1], [0, 2, 0], [0, 0, 0]])
    advantages = jnp.array([[0.0, 5, -1], [5, 3, 5], [5, 5, 5]])
    totals = jax.jit(count_totals)(mask, advantages)
    assert [float(x) for x in totals] == [3, 2, 2, 3]
    passes = jnp.array([[1.0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert [float(x) for x in count_totals(mask, advantages, passes)] == [3, 2, 2, 2]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_without_a_token_there_is_no_loss(aggregation):
    zeros = jnp.zeros((2, 3))
    weights = token_weights(zeros, aggregation, tokens=0, sequences=0, constant=5)
    np.testing.assert_array_equal(weights, zeros)
    assert weighted_sum(zeros * jnp.nan, weights) == 0


def test_a_nan_at_a_valid_token_is_not_hidden():
    assert np.isnan(weighted_sum(jnp.array([1.0, jnp.nan]), jnp.array([0.5, 0.5])))


@pytest.mark.parametrize(
    ("aggregation", "constant", "message"),
    [
        ("mean", None, "unknown aggregation 'mean'; choose one of .*'sequence'"),
        ("constant", None, "divides by a number of tokens, not None"),
        ("constant", 0, "divides by a number of tokens, not 0"),
    ],
)
def test_errors(aggregation, constant, message):
    with pytest.raises(ValueError, match=message):
        token_weights(jnp.ones((1, 1)), aggregation, tokens=1, sequences=1, constant=constant)


def test_sums_of_sequences_that_share_a_row():
    x_BT = jnp.asarray([[1.0, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32]])
    sequence_BT = jnp.asarray([[7, 7, 3, 3, 3, 9], [5, 5, 5, 5, 5, 5]])
    np.testing.assert_array_equal(
        sequence_sums(x_BT, sequence_BT), [[3, 3, 28, 28, 28, 32], [63] * 6]
    )
    np.testing.assert_array_equal(sequence_sums(x_BT), [[63], [63]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_of_packed_rows(aggregation):
    """The second and the third sequence, and the first, in rows of 12 tokens."""
    mask_BT = np.zeros((3, 5), np.float32)
    mask_BT[0, 1:], mask_BT[1, [2, 4]], mask_BT[2, 3] = 1, 1, 1
    settings = dict(tokens=7.0, sequences=3.0, constant=11)
    plain_BT = np.asarray(token_weights(mask_BT, aggregation, **settings))

    def packed(x_BT):
        blank = np.zeros(7)
        return np.stack([np.r_[x_BT[1], x_BT[2], blank[:2]], np.r_[x_BT[0], blank]])

    sequence_BT = jnp.asarray([[1] * 5 + [2] * 5 + [3] * 2, [0] * 5 + [3] * 7])
    got = token_weights(packed(mask_BT), aggregation, **settings, sequence_BT=sequence_BT)
    np.testing.assert_allclose(got, packed(plain_BT), rtol=1e-6)
