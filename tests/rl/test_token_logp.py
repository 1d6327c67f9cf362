"""Token log-probs against the log-softmax over all of [B, T, V]."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sr1_jax.models.packed import PackedSequences
from sr1_jax.rl.token_logp import token_logp

ROWS, LENGTH = 3, 11


@pytest.fixture(scope="module")
def ids_BT():
    return np.random.default_rng(0).integers(0, 24, (ROWS, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def wanted_BT():
    """Uneven rows: all tokens, none, and some; the first token is asked for, too."""
    wanted_BT = np.zeros((ROWS, LENGTH), np.float32)
    wanted_BT[0] = 1
    wanted_BT[2, [0, 1, 4, 5, 10]] = 1
    return wanted_BT


@pytest.fixture(scope="module")
def run(rl_policy):
    """`token_logp` of the tiny policy, compiled."""
    graph, initial = nnx.split(rl_policy)

    @functools.partial(jax.jit, static_argnames=("max_wanted", "temperature", "chunk_tokens"))
    def compiled(params, ids_BT, wanted_BT, **options):
        return token_logp(nnx.merge(graph, params), ids_BT, wanted_BT, **options)

    def run(ids_BT, wanted_BT, *, params=initial, max_wanted=LENGTH, **options):
        return compiled(params, ids_BT, wanted_BT, max_wanted=max_wanted, **options)

    return run


def expected(full_logp, ids_BT, wanted_BT, temperature=1.0):
    """Loop over tokens: log-prob of each, and the entropy of its distribution."""
    logp_BT, entropy_BT = np.zeros((2, *ids_BT.shape))
    for row, ids_T in enumerate(ids_BT):
        logp_TV = full_logp(ids_T, temperature=temperature)
        for t in range(1, len(ids_T)):
            if wanted_BT[row, t]:
                logp_BT[row, t] = logp_TV[t, ids_T[t]]
                entropy_BT[row, t] = -np.sum(np.exp(logp_TV[t]) * logp_TV[t])
    return logp_BT, entropy_BT


@pytest.mark.parametrize("chunk_tokens", [1, 7, 30, 4096])
def test_equals_the_full_log_softmax(run, full_logp, ids_BT, wanted_BT, chunk_tokens):
    logp_BT, entropy_BT = run(ids_BT, wanted_BT, chunk_tokens=chunk_tokens)
    want_logp_BT, want_entropy_BT = expected(full_logp, ids_BT, wanted_BT)
    np.testing.assert_allclose(logp_BT, want_logp_BT, atol=2e-6)
    np.testing.assert_allclose(entropy_BT, want_entropy_BT, atol=4e-6)
    assert logp_BT.dtype == entropy_BT.dtype == jnp.float32


def test_exact_zeros_where_nothing_is_wanted(run, ids_BT, wanted_BT):
    nothing_BT = wanted_BT == 0
    nothing_BT[:, 0] = True
    for array in run(ids_BT, wanted_BT):
        assert np.all(np.asarray(array)[nothing_BT] == 0)
        assert np.all(np.asarray(array)[~nothing_BT] != 0)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_temperature_divides_the_logits(run, full_logp, ids_BT, wanted_BT, temperature):
    logp_BT, entropy_BT = run(ids_BT, wanted_BT, temperature=temperature)
    want_logp_BT, want_entropy_BT = expected(full_logp, ids_BT, wanted_BT, temperature)
    np.testing.assert_allclose(logp_BT, want_logp_BT, atol=4e-6)
    np.testing.assert_allclose(entropy_BT, want_entropy_BT, atol=4e-6)


def test_temperature_zero_counts_as_one(run, ids_BT, wanted_BT):
    np.testing.assert_array_equal(
        run(ids_BT, wanted_BT, temperature=0.0)[0], run(ids_BT, wanted_BT, temperature=1.0)[0]
    )


def test_a_bound_that_holds_changes_nothing(run, ids_BT, wanted_BT):
    some_BT = wanted_BT[2:]  # four wanted tokens after the first
    whole, bounded = (run(ids_BT[2:], some_BT, max_wanted=max_wanted) for max_wanted in (LENGTH, 4))
    np.testing.assert_allclose(bounded, whole, atol=2e-6)


def test_tokens_past_the_bound_come_back_as_zero(run, full_logp, ids_BT, wanted_BT):
    logp_BT, entropy_BT = run(ids_BT, wanted_BT, max_wanted=3)
    kept_BT = np.zeros_like(wanted_BT)
    kept_BT[0, 1:4] = kept_BT[2, [1, 4, 5]] = 1
    want_logp_BT, want_entropy_BT = expected(full_logp, ids_BT, kept_BT)
    np.testing.assert_allclose(logp_BT, want_logp_BT, atol=2e-6)
    np.testing.assert_allclose(entropy_BT, want_entropy_BT, atol=4e-6)


def test_padding_does_not_matter(run, ids_BT, wanted_BT):
    other_BT = np.array(ids_BT)
    other_BT[:, 8:] = 23 - other_BT[:, 8:]
    short_BT = np.where(np.arange(LENGTH)[None] < 8, wanted_BT, 0)
    np.testing.assert_array_equal(run(ids_BT, short_BT)[0], run(other_BT, short_BT)[0])


def test_packed_rows_have_the_log_probs_of_their_sequences(run, ids_BT, wanted_BT):
    """One row of what were the third and the first; their first tokens have none."""
    logp_BT, entropy_BT = run(ids_BT, wanted_BT)

    def packed(x_BT):
        return np.concatenate([x_BT[2:], x_BT[:1], 0 * x_BT[:1, :2]], axis=1)

    lengths = (LENGTH, LENGTH, 2)
    sequences = PackedSequences(
        np.repeat([2, 0, ROWS], lengths)[None].astype(np.int32),
        np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32),
    )
    options = dict(max_wanted=int(wanted_BT.sum()), chunk_tokens=7, packed=sequences)
    got = run(packed(ids_BT), packed(wanted_BT), **options)
    for a, b in zip(got, (logp_BT, entropy_BT)):
        np.testing.assert_allclose(a, packed(np.asarray(b)), atol=2e-6)


def test_gradient_equals_that_of_the_full_log_softmax(rl_policy, ids_BT, wanted_BT):
    graph, params = nnx.split(rl_policy)
    ids_BT, wanted_BT = jnp.asarray(ids_BT), jnp.asarray(wanted_BT)
    weight_BT, spread_BT = np.random.default_rng(1).normal(size=(2, *ids_BT.shape))

    def chunked(params):
        model = nnx.merge(graph, params)
        logp_BT, entropy_BT = token_logp(
            model, ids_BT, wanted_BT, max_wanted=LENGTH, chunk_tokens=7
        )
        return jnp.sum(weight_BT * logp_BT + spread_BT * entropy_BT)

    def full(params):
        logp_BTV = jax.nn.log_softmax(nnx.merge(graph, params)(ids_BT)[:, :-1], axis=-1)
        logp_BT = jnp.take_along_axis(logp_BTV, ids_BT[:, 1:, None], axis=-1)[..., 0]
        entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
        terms_BT = weight_BT[:, 1:] * logp_BT + spread_BT[:, 1:] * entropy_BT
        return jnp.sum(terms_BT * wanted_BT[:, 1:])

    got, want = jax.jit(jax.grad(chunked))(params), jax.jit(jax.grad(full))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(got))
