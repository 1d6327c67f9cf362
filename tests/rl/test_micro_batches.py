"""Which rows share a micro-batch, and how long its arrays are."""

import numpy as np
import pytest

from sr1_jax.rl.micro_batches import padding_share, plan_buckets, smallest_bucket

# Trained tokens end after 9, 2, 0, 12, 5 and 4 tokens.
TRAINS_BT = np.zeros((6, 12), np.float32)
for row, trained in enumerate([(1, 8), (1,), (), (0, 1, 2, 11), (3, 4), (2, 3)]):
    TRAINS_BT[row, list(trained)] = 1


def plan(rows=range(6), size=2, buckets=(4, 6, 16)):
    return plan_buckets(TRAINS_BT, np.array(rows), size=size, buckets=buckets)


def test_rows_of_like_length_share_a_micro_batch():
    assert [(b.rows.tolist(), b.length) for b in plan()] == [
        ([3, 0], 12),
        ([4, 5], 6),
        ([1, 2], 4),
    ]
    assert [b.rows.tolist() for b in plan([5, 1, 4], size=3)] == [[4, 5, 1]]


def test_the_bound_on_trained_tokens_holds_and_has_few_values():
    # A quarter of 12 holds not 4 but 3; a quarter of 6 holds 2, and of 4, 1.
    assert [b.trained for b in plan()] == [6, 2, 1]
    for length in range(1, 70):
        bounds = set()
        for trained in range(length + 1):
            trains_BT = np.arange(length)[None] < trained
            (only,) = plan_buckets(trains_BT, np.array([0]), size=1, buckets=(length,))
            assert trained <= only.trained <= length
            bounds.add(only.trained)
        assert len(bounds) <= 3


def test_rows_without_a_trained_token_are_left_out():
    assert [b.rows.tolist() for b in plan([2, 0], size=1)] == [[0]]
    assert [b.rows.tolist() for b in plan([2], size=1)] == [[2]]


def test_equal_lengths_keep_their_order():
    trains_BT = np.ones((4, 3))
    (first, second) = plan_buckets(trains_BT, np.array([2, 0, 3, 1]), size=2, buckets=(3,))
    assert (first.rows.tolist(), second.rows.tolist()) == ([2, 0], [3, 1])


def test_padding_share():
    # Arrays of 2 x 12, 2 x 6 and 2 x 4 tokens for 12 + 9 + 5 + 4 + 2 + 0.
    assert padding_share(TRAINS_BT, plan()) == pytest.approx(1 - 32 / 44)


def test_smallest_bucket():
    assert [smallest_bucket(n, (4, 8, 20)) for n in (1, 4, 5, 8, 9, 20)] == [4, 4, 8, 8, 20, 20]
    with pytest.raises(ValueError, match=r"21 tokens fits no length bucket: they are \(4, 8, 20\)"):
        smallest_bucket(21, (4, 8, 20))
