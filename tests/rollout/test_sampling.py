"""Sampling against NumPy: what may be sampled, how often, and the log-probability stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.rollout.sampling import _invert, sample, slot_keys, truncate_logits


def truncate_by_loops(logits_V, top_k, top_p):
    """Takes tokens from the most likely on, one by one, until k or the nucleus is full."""
    order = sorted(range(len(logits_V)), key=lambda v: -logits_V[v])
    kept = order[:top_k] if top_k else order
    weight = {v: np.exp(logits_V[v] - logits_V[order[0]]) for v in kept}
    total, mass, nucleus = sum(weight.values()), 0.0, []
    for v in kept:
        nucleus.append(v)
        mass += weight[v] / total
        if mass >= top_p:
            break
    return np.array([logits_V[v] if v in nucleus else -np.inf for v in range(len(logits_V))])


def log_softmax(logits_V):
    shifted = logits_V - logits_V.max()
    return shifted - np.log(np.exp(shifted).sum())


@pytest.mark.parametrize("top_k", [0, 1, 3, 17, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
def test_truncation_equals_loops(top_k, top_p):
    rng = np.random.default_rng(top_k)
    logits_SV = (3 * rng.normal(size=(20, 17))).astype(np.float32)
    got = np.asarray(truncate_logits(jnp.asarray(logits_SV), top_k=top_k, top_p=top_p))
    want = [truncate_by_loops(row, top_k, top_p) for row in logits_SV.astype(np.float64)]
    np.testing.assert_array_equal(got, np.array(want, np.float32))


def test_nucleus_example():
    """Probabilities 0.5, 0.3, 0.15, 0.05: the nucleus takes the token that crosses the bound."""
    logits = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
    for top_p, kept in [(0.4, [1]), (0.6, [1, 3]), (0.85, [0, 1, 3]), (0.97, [0, 1, 2, 3])]:
        out = np.asarray(truncate_logits(logits, top_k=0, top_p=top_p))[0]
        assert np.flatnonzero(np.isfinite(out)).tolist() == kept
    # The nucleus is that of the distribution left by top_k: 0.5 / 0.8 is less than 0.63.
    out = np.asarray(truncate_logits(logits, top_k=2, top_p=0.62))[0]
    assert np.flatnonzero(np.isfinite(out)).tolist() == [1]
    out = np.asarray(truncate_logits(logits, top_k=2, top_p=0.63))[0]
    assert np.flatnonzero(np.isfinite(out)).tolist() == [1, 3]


def test_no_truncation_leaves_logits_as_they_are():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32))
    np.testing.assert_array_equal(truncate_logits(logits, top_k=0, top_p=1.0), logits)


LOGITS = np.array([1.5, 0.2, -0.4, 0.9, -2.0, 0.5], np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.8), (0.7, 5, 0.9)],
)
def test_frequencies_and_log_probabilities(temperature, top_k, top_p):
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    logits_VS = jnp.broadcast_to(LOGITS[:, None], (len(LOGITS), draws))
    token, logp = sample(logits_VS, keys, temperature=temperature, top_k=top_k, top_p=top_p)
    token, logp = np.asarray(token), np.asarray(logp)
    assert token.dtype == np.int32 and logp.dtype == np.float32

    want_V = log_softmax(truncate_by_loops(LOGITS.astype(np.float64) / temperature, top_k, top_p))
    np.testing.assert_allclose(logp, want_V[token], atol=1e-5)
    count_V = np.bincount(token, minlength=len(LOGITS))
    possible = np.isfinite(want_V)
    assert not count_V[~possible].any()
    expected_V = draws * np.exp(want_V[possible])
    chi_square = ((count_V[possible] - expected_V) ** 2 / expected_V).sum()
    # Beyond this with a probability of 1e-5 at five degrees of freedom; fewer are stricter.
    assert chi_square < 30.9


def test_frequencies_in_a_large_vocabulary():
    """Tokens of several blocks, the last of them not full, some impossible."""
    rng = np.random.default_rng(0)
    draws, vocabulary = 40_000, 700
    logits_V = (2 * rng.normal(size=vocabulary)).astype(np.float32)
    logits_V[rng.random(vocabulary) < 0.3] = -np.inf
    logits_V[256:512] -= 3.0
    keys = jax.random.split(jax.random.key(1), draws)
    logits_VS = jnp.broadcast_to(logits_V[:, None], (vocabulary, draws))
    token, logp = sample(logits_VS, keys, temperature=1.0, top_k=0, top_p=1.0)
    want_V = log_softmax(logits_V.astype(np.float64))
    np.testing.assert_allclose(logp, want_V[np.asarray(token)], atol=1e-5)
    count_V = np.bincount(token, minlength=vocabulary)
    assert not count_V[np.isneginf(want_V)].any()
    # By block, and within each: no statistic of 50 cells or more stands far from its mean.
    expected_V = draws * np.exp(want_V)
    for cells in np.split(np.arange(vocabulary), [256, 512]):
        seen, wanted = count_V[cells], expected_V[cells]
        assert abs(seen.sum() - wanted.sum()) < 5 * np.sqrt(wanted.sum())
        often = wanted > 5
        chi_square = ((seen[often] - wanted[often]) ** 2 / wanted[often]).sum()
        assert abs(chi_square - often.sum()) < 5 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_what_cannot_be_is_never_drawn(uniform):
    """Also where rounding of the sums would allow it: at both ends."""
    weights = np.zeros((3, 300), np.float32)
    weights[0, 17] = weights[1, [0, 299]] = 1.0
    weights[2, 5:280] = 1e-7
    drawn = np.asarray(_invert(jnp.asarray(weights), jnp.full(3, uniform)))
    assert (weights[np.arange(3), drawn] > 0).all()


def test_greedy_takes_the_most_likely_at_the_model_s_own_probability():
    rng = np.random.default_rng(0)
    logits_SV = rng.normal(size=(8, 11)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    token, logp = sample(jnp.asarray(logits_SV.T), keys, temperature=0, top_k=2, top_p=0.5)
    np.testing.assert_array_equal(token, logits_SV.argmax(axis=1))
    want = [log_softmax(row.astype(np.float64)).max() for row in logits_SV]
    np.testing.assert_allclose(logp, want, atol=1e-5)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e30, 0.0, -1e30]])
    keys = jax.random.split(jax.random.key(0), 2)
    token, logp = sample(logits.T, keys, temperature=1.0, top_k=2, top_p=0.9)
    np.testing.assert_array_equal(token, [0, 1])
    np.testing.assert_array_equal(logp, [0.0, 0.0])


def _bits(keys) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


def test_a_key_is_that_of_question_sample_and_position():
    seed_key = jax.random.key(3)
    streams = np.array([[5, 0], [2**32 - 1, 7]], np.uint32)
    positions = np.array([4, 9], np.int32)
    got = _bits(slot_keys(seed_key, streams, positions))
    for row, (stream, position) in enumerate(zip(streams, positions)):
        want = seed_key
        for number in (*stream, position):
            want = jax.random.fold_in(want, number)
        np.testing.assert_array_equal(got[row], _bits(want))


def test_keys_differ_in_each_part_and_do_not_care_for_the_slot():
    seed_key = jax.random.key(0)
    rows = [(q, s, p) for q in (1, 2, 3) for s in (0, 1, 2) for p in (0, 1, 2)]
    streams = np.array([row[:2] for row in rows], np.uint32)
    positions = np.array([row[2] for row in rows], np.int32)
    keys = _bits(slot_keys(seed_key, streams, positions))
    assert len(np.unique(keys, axis=0)) == len(rows)  # no symmetry between the three numbers
    order = np.random.default_rng(0).permutation(len(rows))[:10]
    again = _bits(slot_keys(seed_key, streams[order], positions[order]))
    np.testing.assert_array_equal(again, keys[order])
    other_seed = _bits(slot_keys(jax.random.key(1), streams, positions))
    assert len(np.unique(np.concatenate([keys, other_seed]), axis=0)) == 2 * len(rows)
