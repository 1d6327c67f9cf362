"""Sequences packed into rows: which share one, and where each of their tokens stands.

Length buckets leave padding wherever the longest trajectory of a micro-batch is longer than the
others: the more rows, the more of it. Packed, a row is filled with sequences that nearly add up to
its length.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from sr1_jax.models.packed import PackedSequences


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into bins: the largest first, each where it leaves the least room.

    With many items it fills at most 11/9 of the fewest bins there can be (Johnson et al. 1974). The
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


def packed_sequences(
    bins: Sequence[Sequence[int]],
    rows: np.ndarray,
    end_R: np.ndarray,
    *,
    shape: tuple[int, int],
    padding: int,
) -> PackedSequences:
    """Where each token of packed rows comes from.

    Args:
        bins: the sequences of each packed row, as indices into `rows`.
        rows: int [R], the row of the batch that each sequence is.
        end_R: tokens of each sequence.
        shape: packed rows, of which some may be empty, and tokens of each.
        padding: the number that stands for no row of the batch.

    Returns:
        int32 arrays of that shape: the row of the batch, and the position in it.
    """
    id_RT, position_RT = np.full(shape, padding, np.int32), np.zeros(shape, np.int32)
    for row, members in enumerate(bins):
        start = 0
        for member in members:
            stop = start + end_R[member]
            id_RT[row, start:stop] = rows[member]
            position_RT[row, start:stop] = np.arange(end_R[member])
            start = stop
    return PackedSequences(id_RT, position_RT)
