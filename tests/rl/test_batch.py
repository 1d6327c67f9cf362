"""Trajectories stacked into arrays."""

import dataclasses

import numpy as np
import pytest

from sr1_jax.rl.batch import make_batch


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
            segment_rewards=np.float32([-0.25, 0.75]),
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
    for mask_BT in (batch.trains_BT, batch.sampled_BT):
        np.testing.assert_array_equal(mask_BT, [[0, 0, 1, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        batch.logp_BT, [[0, 0, -1, -2, 0, 0, -3, 0], [0, -4, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        batch.rewards_BT, [[0, 0, 0, -0.25, 0, 0, 0.75, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.reward_B, [0.5, 1.0])
    assert [array.dtype.name for array in batch] == ["int32", *["float32"] * 5, "int32"]


def test_rewards_keep_their_fractions(make_trajectory):
    rewards = [0.5, 0.1, 1.0]
    batch = make_batch([make_trajectory(reward=r) for r in rewards], length=2, pad_id=0)
    np.testing.assert_array_equal(batch.reward_B, np.float32(rewards))
    np.testing.assert_array_equal(batch.rewards_BT[:, 1], np.float32(rewards))


def test_a_real_token_that_looks_like_padding_stays(make_trajectory):
    row = make_trajectory(ids=[7, 0, 0], mask=[0, 1, 1])
    np.testing.assert_array_equal(make_batch([row], length=4, pad_id=0).trains_BT, [[0, 1, 1, 0]])


def test_a_token_of_probability_one_was_sampled(make_trajectory):
    row = make_trajectory(ids=[7, 8, 9], mask=[0, 1, 1], logp=np.float32([0, 0, -1]))
    np.testing.assert_array_equal(make_batch([row], length=3, pad_id=0).sampled_BT, [[0, 1, 1]])


def test_groups_are_questions_whatever_their_order(make_trajectory):
    names = ["nq:train:0", "hotpotqa:train:0", "nq:train:0", "nq:train:00", "hotpotqa:train:0"]
    rows = [make_trajectory(question_id=name) for name in names]
    assert make_batch(rows, length=2, pad_id=0).group_B.tolist() == [0, 1, 0, 2, 1]


def test_unmasked_observations_train_from_the_prompt_to_the_end_but_were_not_sampled(pair):
    masked = make_batch(pair, length=8, pad_id=99)
    batch = make_batch(pair, length=8, pad_id=99, mask_observations=False)
    np.testing.assert_array_equal(
        batch.trains_BT, [[0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.sampled_BT, masked.sampled_BT)
    np.testing.assert_array_equal(batch.rewards_BT, masked.rewards_BT)


@pytest.mark.parametrize("mask_observations", [True, False])
def test_one_that_is_left_out_has_neither_tokens_nor_rewards(pair, mask_observations):
    left_out = dataclasses.replace(pair[0], trains=False)
    batch = make_batch([left_out, *pair], length=8, pad_id=0, mask_observations=mask_observations)
    for array_BT in (batch.trains_BT, batch.sampled_BT, batch.rewards_BT):
        assert not array_BT[0].any()
    # It is a member of its group as ever, and the others do not know of it.
    assert batch.reward_B[0] == 0.5 and batch.group_B.tolist() == [0, 0, 1]
    alone = make_batch(pair, length=8, pad_id=0, mask_observations=mask_observations)
    for array, other in zip(batch[:-1], alone[:-1]):
        np.testing.assert_array_equal(array[1:], other)


def test_errors(pair):
    with pytest.raises(ValueError, match=r"Trajectory a has 7 tokens, the batch holds 6\."):
        make_batch(pair, length=6, pad_id=0)
    wrong = dataclasses.replace(pair[0], segment_rewards=np.float32([1.0]))
    with pytest.raises(ValueError, match=r"Trajectory a has 2 segments, but 1 segment rewards\."):
        make_batch([wrong], length=8, pad_id=0)
