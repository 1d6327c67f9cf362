"""Which trajectories share a packed row, and where their tokens stand."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.rl.micro_batches import (
    micro_batch_shapes,
    padding_share,
    plan_micro_batches,
    plan_packed,
)
from sr1_jax.rl.packing import best_fit_decreasing
from sr1_jax.rl.settings import default_config, row_lengths


@given(sizes=st.lists(st.integers(1, 50), max_size=60), spare=st.integers(0, 60))
def test_every_item_is_in_one_bin_that_holds_it(sizes, spare):
    capacity = max(sizes, default=1) + spare
    bins = best_fit_decreasing(sizes, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    loads = sorted(sum(sizes[index] for index in members) for members in bins)
    assert all(0 < load <= capacity for load in loads)
    # No two bins could be one; hence there are fewer than twice the fewest.
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


def test_the_largest_first_each_where_the_least_room_is_left():
    # 7 and 6 open bins, 4 fills the second, 3 the first; 2 opens the third.
    assert best_fit_decreasing([3, 7, 2, 4, 6], 10) == [[1, 0], [4, 3], [2]]
    # A bin of 9 has less room than one of 8.
    assert best_fit_decreasing([8, 9, 1], 10) == [[1, 2], [0]]
    assert best_fit_decreasing([5, 5, 5], 10) == [[0, 1], [2]]
    assert best_fit_decreasing([], 10) == []


@st.composite
def masks(draw):
    """Trained tokens of some trajectories, a few without any."""
    rows = draw(st.lists(st.lists(st.booleans(), max_size=14), min_size=1, max_size=20))
    trains_BT = np.zeros((len(rows), 14), np.float32)
    for row, trained in enumerate(rows):
        trains_BT[row, : len(trained)] = trained
    return trains_BT


@given(trains_BT=masks(), size=st.integers(1, 5), data=st.data())
def test_all_trained_tokens_are_packed_once(trains_BT, size, data):
    rows = np.array(data.draw(st.permutations(range(len(trains_BT)))))[: len(trains_BT) // 2 + 1]
    lengths = (5, 11, 14, 17, 30)
    plan = plan_packed(trains_BT, rows, size=size, lengths=lengths)
    ends = {row: np.flatnonzero(trains_BT[row]).max() + 1 for row in rows if trains_BT[row].any()}
    assert len({part.length for part in plan}) == 1 and plan[0].length in lengths
    found = []
    for ids_RT, positions_RT in (part.rows for part in plan):
        assert ids_RT.shape == positions_RT.shape == (size, plan[0].length)
        assert ids_RT.dtype == positions_RT.dtype == np.int32
        for ids_T, positions_T in zip(ids_RT, positions_RT):
            # Runs of one id, each from its first token to its last trained one; then padding.
            starts = np.flatnonzero(np.diff(ids_T, prepend=-1))
            for start, stop in zip(starts, [*starts[1:], len(ids_T)]):
                if ids_T[start] == len(trains_BT):
                    assert stop == len(ids_T)
                    continue
                found.append(ids_T[start])
                assert stop - start == ends[ids_T[start]]
                assert np.array_equal(positions_T[start:stop], np.arange(stop - start))
    assert sorted(found) == sorted(ends)
    for part in plan:
        kept_RT = np.r_[trains_BT, np.zeros((1, 14))][part.rows.id_BT, part.rows.position_BT]
        assert kept_RT.sum(axis=1).max() <= part.trained <= part.length
    assert padding_share(trains_BT, plan) == pytest.approx(
        1 - sum(ends.values()) / (len(plan) * size * plan[0].length)
    )


def trained_to(*ends):
    """Trajectories all of whose tokens up to an end are trained."""
    return (np.arange(max(ends))[None] < np.array(ends)[:, None]).astype(np.float32)


@pytest.mark.parametrize(
    ("ends", "size", "length", "micro_batches"),
    [
        ((10, 6, 4, 10, 7, 3), 4, 10, 1),  # four full rows
        ((10, 6, 4, 10, 7, 3), 2, 10, 2),
        ((10, 6, 6, 6, 6), 2, 20, 1),  # 16 and 18 of 20; five rows of 10 are three times two
        ((10, 9, 9), 2, 10, 2),  # one of rows of 20 has as many tokens; the shorter cost less
        ((9, 9, 9, 9), 4, 10, 1),  # not in two rows of 20: others would be empty
        ((3, 2), 2, 4, 1),
    ],
)
def test_rows_are_of_the_length_that_computes_the_fewest_tokens(ends, size, length, micro_batches):
    plan = plan_packed(trained_to(*ends), np.arange(len(ends)), size=size, lengths=(4, 10, 20))
    assert [part.length for part in plan] == [length] * micro_batches


def test_without_a_trained_token_there_is_a_micro_batch_of_padding():
    (only,) = plan_packed(np.zeros((3, 8)), np.arange(3), size=2, lengths=(4, 8))
    assert only.length == 4 and np.all(only.rows.id_BT == 3)
    assert padding_share(np.zeros((3, 8)), [only]) == 1


def test_a_trajectory_longer_than_any_row():
    with pytest.raises(ValueError, match=r"of 9 tokens fits no packed row: they hold \(4, 8\)"):
        plan_packed(trained_to(9, 2), np.arange(2), size=1, lengths=(4, 8))


def test_usual_rows_reach_a_quarter_beyond_the_last_bucket():
    config = default_config()
    assert row_lengths(config)[-5:] == (4096, 4352, 4608, 4864, 5120)
    config.length_buckets = (64, 136)
    assert row_lengths(config) == (64, 136, 145, 153, 162, 170)
    config.row_lengths = (200, 300)
    assert row_lengths(config) == (200, 300)


@pytest.mark.parametrize("packing", [False, True])
def test_every_micro_batch_has_a_listed_shape(packing):
    config = default_config()
    config.update(packing=packing, micro_batch=4, length_buckets=(8, 16, 24))
    shapes = {
        (part.length, part.trained): jax.tree.map(lambda x: (x.shape, x.dtype), part.rows)
        for part in micro_batch_shapes(config, 16)
    }
    rng = np.random.default_rng(0)
    met = set()
    for _ in range(30):
        end_B1, share = rng.integers(1, 25, (16, 1)), rng.random()
        trains_BT = (np.arange(24)[None] < end_B1) * (rng.random((16, 24)) < share)
        for part in plan_micro_batches(trains_BT, np.arange(16), config):
            shape = jax.tree.map(lambda x: (x.shape, x.dtype), part.rows)
            assert shapes[part.length, part.trained] == shape
            met.add((part.length, part.trained))
    assert len(met) > 5
