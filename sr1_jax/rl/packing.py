"""Several trajectories in a row: which share one, and where each of their tokens stands.

Length buckets leave padding wherever the longest trajectory of a micro-batch is longer than the
others: the more rows, the more of it. Packed, a row is filled with trajectories that nearly add
up to its length.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from sr1_jax.models.segments import Segments
from sr1_jax.rl.micro_batches import MicroBatch, trained_bound, trained_ends


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into bins: the largest first, each where it leaves the least room.

    Of many items it fills at most 11/9 of the fewest bins there can be (Johnson et al. 1974). The
    same sizes are always packed in the same way.

    Args:
        sizes: of the items, each at most `capacity`.
        capacity: of a bin.

    Returns:
        The indices of the items of each bin.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is left of each bin, and its number; increasing
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        at = bisect.bisect_left(rooms, (sizes[index], -1))
        if at < len(rooms):
            room, number = rooms.pop(at)
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(index)
        bisect.insort(rooms, (room - sizes[index], number))
    return bins


def plan_packed(
    mask_BT: np.ndarray, rows: np.ndarray, *, size: int, lengths: Sequence[int]
) -> list[MicroBatch]:
    """Packs trajectories into micro-batches whose rows are all of one length, that of `lengths`
    with which the fewest tokens are computed.

    Of a trajectory the tokens up to its last trained one are packed: models are causal. Those
    without a token to train are left out; without any other there is one micro-batch of padding.

    Args:
        mask_BT: nonzero on the tokens that train.
        rows: the trajectories to pack.
        size: packed rows of a micro-batch; the last one may have empty ones.
        lengths: increasing; what a packed row may hold.

    Returns:
        Micro-batches with `Segments` whose ids are rows of the batch; those of padding are the
        number of rows there are.

    Raises:
        ValueError: a trajectory is longer than the last of the lengths.
    """
    rows = rows[mask_BT[rows].any(axis=1)]
    end_R = trained_ends(mask_BT[rows] != 0)
    longest = int(end_R.max(initial=1))
    holding = [length for length in lengths if length >= longest]
    if not holding:
        raise ValueError(
            f"A trajectory of {longest} tokens fits no packed row; learner.row_lengths are "
            f"{tuple(lengths)}."
        )
    packings = {length: best_fit_decreasing(end_R.tolist(), length) for length in holding}
    # Of as many tokens, the shortest rows: attention costs their square.
    length = min(holding, key=lambda length: -(-len(packings[length]) // size) * length)
    bins = packings[length]
    plan = []
    for start in range(0, max(len(bins), 1), size):
        segments, trained = _lay_out(bins[start : start + size], rows, mask_BT, end_R, size, length)
        plan.append(MicroBatch(segments, length, trained_bound(trained, length)))
    return plan


def _lay_out(
    bins: list[list[int]],
    rows: np.ndarray,
    mask_BT: np.ndarray,
    end_R: np.ndarray,
    size: int,
    length: int,
) -> tuple[Segments, int]:
    """The segments of a micro-batch, and the most trained tokens that one of its rows has."""
    id_RT = np.full((size, length), len(mask_BT), np.int32)
    position_RT = np.zeros((size, length), np.int32)
    trained = 0
    for row, members in enumerate(bins):
        start = 0
        for member in members:
            stop = start + end_R[member]
            id_RT[row, start:stop] = rows[member]
            position_RT[row, start:stop] = np.arange(end_R[member])
            start = stop
        trained = max(trained, np.count_nonzero(mask_BT[rows[members]]))
    return Segments(id_RT, position_RT), trained
