"""Which trajectories pass the models together, and in arrays of which length.

Trajectories of a search agent differ in length by a factor of ten, and what a device computes on
padding is lost. Rows of like length share a micro-batch, which is cut to the smallest bucket
that holds all of its trained tokens: models are causal, so what follows the last of them changes
nothing. `packing` makes micro-batches of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sr1_jax.models.segments import Segments


class MicroBatch(NamedTuple):
    """Trajectories of a batch that pass a model together.

    Attributes:
        rows: int32 [R], rows of the batch; or, packed, `Segments` [R, length]: of each token the
            row of the batch that it is taken from, and its position there. Rows that are not
            in the batch stand for padding.
        length: tokens of a row that are read, one of few values.
        most: bound on the trained tokens of a row, one of few values for each length.
    """

    rows: np.ndarray | Segments | jax.ShapeDtypeStruct
    length: int
    most: int


def plan_micro_batches(
    mask_BT: np.ndarray, rows: np.ndarray, *, size: int, buckets: Sequence[int]
) -> list[MicroBatch]:
    """Cuts rows of a batch into micro-batches of like length, the longest first.

    A micro-batch without a token to train is left out, unless there is no other.

    Args:
        mask_BT: nonzero on the tokens that train.
        rows: those to cut up; `size` divides their number.
        size: rows of a micro-batch.
        buckets: increasing lengths.

    Raises:
        ValueError: a row is longer than the last bucket.
    """
    mask_RT = mask_BT[rows] != 0
    end_R = trained_ends(mask_RT)
    # Stable, so that the same batch is always cut in the same way.
    order = np.argsort(-end_R, kind="stable").reshape(-1, size)
    plan = []
    for index in order:
        if plan and not end_R[index[0]]:
            break
        length = min(bucket(end_R[index[0]], buckets), mask_BT.shape[1])
        most = trained_bound(int(mask_RT[index].sum(axis=1).max()), length)
        plan.append(MicroBatch(rows[index].astype(np.int32), length, most))
    return plan


def padding_share(mask_BT: np.ndarray, plan: Sequence[MicroBatch]) -> float:
    """Share of the tokens in micro-batches that stand after the last trained one of their
    trajectory, or are of none."""
    computed = needed = 0
    for rows, length, _ in plan:
        if isinstance(rows, Segments):
            computed += rows.id_BT.size
            needed += np.count_nonzero(rows.id_BT < len(mask_BT))
        else:
            computed += rows.size * length
            needed += trained_ends(mask_BT[rows] != 0).sum()
    return float(1 - needed / computed)


def bucket(longest: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `longest` tokens.

    Raises:
        ValueError: none does.
    """
    for size in buckets:
        if size >= longest:
            return size
    raise ValueError(
        f"A trajectory of {longest} tokens fits no learner.length_buckets {tuple(buckets)}."
    )


def trained_bounds(length: int) -> list[int]:
    """A quarter of the length, a half and all of it: few, since each is a program."""
    quarter = -(-length // 4)
    return sorted({min(quarter * times, length) for times in (1, 2, 4)})


def trained_ends(mask_RT: np.ndarray) -> np.ndarray:
    """Tokens of each row up to its last trained one."""
    after_last_R = mask_RT[:, ::-1].argmax(axis=1)
    return np.where(mask_RT.any(axis=1), mask_RT.shape[1] - after_last_R, 0)


def trained_bound(most: int, length: int) -> int:
    """The smallest of `trained_bounds` that holds `most` trained tokens."""
    return next(bound for bound in trained_bounds(length) if bound >= most)
