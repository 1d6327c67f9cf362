"""Trajectories stacked into arrays."""

import numpy as np
import pytest

from sr1_jax.rl.batch import make_batch, outcome


@pytest.fixture
def pair(make_trajectory):
    """A search with an observation (ids 40 and 41), and a short answer to another question."""
    return [
        make_trajectory(
            ids=[10, 11, 30, 31, 40, 41, 32],
            mask=[0, 0, 1, 1, 0, 0, 1],
            logp=np.float32([0, 0, -1, -2, 0, 0, -3]),
            question_id="a",
            reward=0.5,
        ),
        make_trajectory(
            ids=[12, 33], mask=[0, 1], logp=np.float32([0, -4]), question_id="b", reward=1.0
        ),
    ]


def test_arrays(pair):
    batch = make_batch(pair, length=8, pad_id=99)
    np.testing.assert_array_equal(
        batch.ids_BT,
        [[10, 11, 30, 31, 40, 41, 32, 99], [12, 33, 99, 99, 99, 99, 99, 99]],
    )
    np.testing.assert_array_equal(
        batch.mask_BT, [[0, 0, 1, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch.logp_BT, [[0, 0, -1, -2, 0, 0, -3, 0], [0, -4, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.reward_B, [0.5, 1.0])
    assert [array.dtype.name for array in batch] == [
        "int32", "float32", "float32", "float32", "int32",
    ]  # fmt: skip


def test_rewards_keep_their_fractions(make_trajectory):
    rewards = [0.5, 0.1, 1.0]
    batch = make_batch(
        [make_trajectory(reward=r) for r in rewards],
        length=2,
        pad_id=0,
    )
    np.testing.assert_array_equal(batch.reward_B, np.float32(rewards))


def test_a_real_token_that_looks_like_padding_stays(make_trajectory):
    row = make_trajectory(ids=[7, 0, 0], mask=[0, 1, 1])
    np.testing.assert_array_equal(make_batch([row], length=4, pad_id=0).mask_BT, [[0, 1, 1, 0]])


def test_groups_are_questions_whatever_their_order(make_trajectory):
    names = ["nq:train:0", "hotpotqa:train:0", "nq:train:0", "nq:train:00", "hotpotqa:train:0"]
    rows = [make_trajectory(question_id=name) for name in names]
    assert make_batch(rows, length=2, pad_id=0).group_B.tolist() == [0, 1, 0, 2, 1]


def test_unmasked_observations_train_from_the_prompt_to_the_end(pair):
    batch = make_batch(pair, length=8, pad_id=99, mask_observations=False)
    np.testing.assert_array_equal(
        batch.mask_BT, [[0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    )


@pytest.mark.parametrize(
    ("truncated", "tokens", "reward"), [("mask", 0, 0.75), ("penalise", 2, -0.3)]
)
@pytest.mark.parametrize("mask_observations", [True, False])
def test_truncated(make_trajectory, pair, truncated, tokens, reward, mask_observations):
    cut = make_trajectory(ids=[1, 2, 3], mask=[0, 1, 1], reward=0.75, status="truncated")
    batch = make_batch(
        [cut, *pair],
        length=8,
        pad_id=0,
        mask_observations=mask_observations,
        truncated=truncated,
        truncation_penalty=0.3,
    )
    assert batch.mask_BT[0].sum() == tokens
    assert batch.reward_B[0] == np.float32(reward)
    # The others are as ever.
    alone = make_batch(pair, length=8, pad_id=0, mask_observations=mask_observations)
    np.testing.assert_array_equal(batch.mask_BT[1:], alone.mask_BT)
    np.testing.assert_array_equal(batch.reward_B[1:], alone.reward_B)


def test_no_answer_is_a_wrong_answer_not_a_cut_one(make_trajectory):
    row = make_trajectory(status="no_answer")
    batch = make_batch([row], length=2, pad_id=0, truncated="penalise", truncation_penalty=1.0)
    assert (batch.mask_BT.sum(), batch.reward_B[0]) == (1, 0)


@pytest.mark.parametrize(
    ("tokens", "reward"),
    [(4, 1.0), (6, 1.0), (7, 0.875), (9, 0.625), (10, 0.5), (12, 0.5)],
)
def test_length_costs_in_the_buffer_before_the_budget(make_trajectory, tokens, reward):
    """DAPO's soft penalty, here of half a point over the last four of ten tokens."""
    row = make_trajectory(ids=range(tokens), mask=[0] + [1] * (tokens - 1), reward=1.0)
    settings = dict(overlong_buffer=4, overlong_penalty=0.5, budget=10)
    assert outcome(row, **settings) == (pytest.approx(reward), True)
    batch = make_batch([row], length=12, pad_id=0, **settings)
    assert batch.reward_B[0] == np.float32(reward)


def test_a_cut_trajectory_pays_no_less_than_one_that_ends_in_time(make_trajectory):
    row = make_trajectory(ids=range(10), mask=[0] + [1] * 9, reward=1.0, status="truncated")
    settings = dict(overlong_buffer=4, overlong_penalty=0.5, budget=10)
    assert outcome(row, truncated="penalise", truncation_penalty=2.0, **settings) == (-2.0, True)
    assert outcome(row, truncated="penalise", truncation_penalty=0.25, **settings) == (-0.5, True)
    assert outcome(row, truncated="penalise", truncation_penalty=0.25) == (-0.25, True)
    assert outcome(row, truncated="mask", **settings)[1] is False


def test_errors(pair):
    with pytest.raises(ValueError, match=r"Trajectory a has 7 tokens, the batch holds 6\."):
        make_batch(pair, length=6, pad_id=0)
    with pytest.raises(ValueError, match=r'learner.truncated must be "mask" or "penalise".*drop'):
        make_batch(pair, length=8, pad_id=0, truncated="drop")
