"""The best of k and the vote of k against all ways to draw them."""

import itertools
import math

import pytest

from sr1_jax.evaluation.votes import ks_of, majority, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_subsets(samples):
    for correct in range(samples + 1):
        right = [index < correct for index in range(samples)]
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(right, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(
                sum(map(any, subsets)) / len(subsets)
            )


def test_pass_at_k_of_many_samples():
    exact = 1 - math.comb(900, 100) / math.comb(1000, 100)
    assert pass_at_k(1000, 100, 100) == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(1000, 1, 1) == pytest.approx(0.001)


@pytest.mark.parametrize("arguments", [(5, 2, 0), (5, 2, 6), (5, 6, 2), (5, -1, 2)])
def test_pass_at_k_of_what_is_not_there(arguments):
    with pytest.raises(ValueError, match="is undefined"):
        pass_at_k(*arguments)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["Bob", "Al", "the bob!"], "Bob"),
        (["Al", "Bob", "BOB", "al"], "Al"),  # a tie: what came first
        (["Bob", "Al", "al.", "BOB"], "Bob"),
        ([None, None, "Al"], "Al"),  # who gives no answer has no vote
        ([None, "the", "a", "Al"], "the"),  # an answer that normalises to nothing is one
        ([None, None], None),
        ([], None),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, []), (2, [2]), (3, [2, 3]), (5, [2, 4, 5]), (8, [2, 4, 8])]
)
def test_for_which_k(samples, ks):
    assert ks_of(samples) == ks
