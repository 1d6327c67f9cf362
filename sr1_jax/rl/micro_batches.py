"""How trajectories are laid out to pass a model: which go together, in arrays of which shape.

A mini-batch passes a model in micro-batches of few shapes, since each shape is a program.
Trajectories of a search agent differ in length by a factor of ten, and what a device computes on
padding is lost. Three layouts keep it small, and all rest on models being causal: what follows the
last token of a trajectory that trains changes nothing, and is left off.

    length buckets   a trajectory a row; rows of like length share a micro-batch, whose arrays have
                     the length of the smallest bucket that holds them
    packed rows      a row holds several trajectories, which nearly add up to its length (`packing`)
    shared prefixes  a packed row holds once what those of a question start with
                     (`shared_prefixes`)

Only the tokens that train pass the output head; a micro-batch therefore knows a bound on how many
of them a row has, one of three values for each length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sr1_jax.models.packed import PackedSequences
from sr1_jax.rl.packing import best_fit_decreasing, packed_sequences
from sr1_jax.rl.settings import minibatches, row_lengths
from sr1_jax.rl.shared_prefixes import (
    SharedPrefixes,
    lay_out,
    pack_families,
    shared_prefixes_shapes,
)


class MicroBatch(NamedTuple):
    """Trajectories of a batch that pass a model together.

    Attributes:
        rows: int32 [R], rows of the batch; or, packed, `PackedSequences` [R, length]: of each
            token the row of the batch that it is taken from, and its position there; or
            `SharedPrefixes`. Rows that are not in the batch stand for padding.
        length: tokens of a row that are read, one of few values.
        trained: bound on the tokens of a row that train, one of few values for each length.
    """

    rows: np.ndarray | PackedSequences | SharedPrefixes | jax.ShapeDtypeStruct
    length: int
    trained: int


def plan_micro_batches(
    trains_BT: np.ndarray,
    rows: np.ndarray,
    config: ml_collections.ConfigDict,
    *,
    ids_BT: np.ndarray | None = None,
    group_B: np.ndarray | None = None,
) -> list[MicroBatch]:
    """Micro-batches of some rows of a batch, laid out as the settings say.

    Args:
        trains_BT: nonzero on the tokens that train.
        rows: int [R], those wanted.
        config: of the learner.
        ids_BT, group_B: of the batch; only `share_prefixes`, within a group, looks at them.

    Returns:
        Micro-batches that together hold every token of the rows that trains, once.

    Raises:
        ValueError: a trajectory is longer than any row.
    """
    size = config.micro_batch
    if config.share_prefixes:
        return plan_shared(trains_BT, rows, ids_BT, group_B, size=size, lengths=row_lengths(config))
    if config.packing:
        return plan_packed(trains_BT, rows, size=size, lengths=row_lengths(config))
    return plan_buckets(trains_BT, rows, size=size, buckets=config.length_buckets)


def micro_batch_shapes(config: ml_collections.ConfigDict, trajectories: int) -> list[MicroBatch]:
    """Every shape that a micro-batch of `plan_micro_batches` may have, with shapes for arrays.

    Args:
        config: of the learner.
        trajectories: of a step.
    """
    size = config.micro_batch
    shapes = []
    for length in row_lengths(config) if config.packing else config.length_buckets:
        rows = jax.ShapeDtypeStruct((size,), jnp.int32)
        if config.share_prefixes:
            rows = shared_prefixes_shapes(
                rows=size,
                length=length,
                trajectories=trajectories // minibatches(config, trajectories),
                longest=config.length_buckets[-1],
            )
        elif config.packing:
            rows = PackedSequences(*[jax.ShapeDtypeStruct((size, length), jnp.int32)] * 2)
        shapes += [MicroBatch(rows, length, trained) for trained in trained_bounds(length)]
    return shapes


def plan_buckets(
    trains_BT: np.ndarray, rows: np.ndarray, *, size: int, buckets: Sequence[int]
) -> list[MicroBatch]:
    """Micro-batches of rows of like length, the longest first.

    A micro-batch without a token that trains is left out, unless there is no other.

    Args:
        trains_BT: nonzero on the tokens that train.
        rows: int [R], those wanted; `size` divides their number.
        size: rows of a micro-batch.
        buckets: increasing lengths.

    Raises:
        ValueError: a row is longer than the last bucket.
    """
    trains_RT = trains_BT[rows] != 0
    end_R = trained_ends(trains_RT)
    # Stable, so that the same batch is always laid out in the same way.
    order = np.argsort(-end_R, kind="stable").reshape(-1, size)
    plan = []
    for index in order:
        longest = end_R[index[0]]
        if plan and not longest:
            break
        length = min(smallest_bucket(longest, buckets), trains_BT.shape[1])
        trained = int(trains_RT[index].sum(axis=1).max())
        rows_of_it = rows[index].astype(np.int32)
        plan.append(MicroBatch(rows_of_it, length, trained_bound(trained, length)))
    return plan


def plan_packed(
    trains_BT: np.ndarray, rows: np.ndarray, *, size: int, lengths: Sequence[int]
) -> list[MicroBatch]:
    """Micro-batches of packed rows, all of one length: that with which the fewest tokens are
    computed.

    A trajectory is packed up to its last token that trains. Those without any are left out; if
    there is no other, one micro-batch is all padding.

    Args:
        trains_BT: nonzero on the tokens that train.
        rows: int [R], the trajectories to pack.
        size: packed rows of a micro-batch; the last one may have empty ones.
        lengths: increasing; what a packed row may hold.

    Returns:
        Micro-batches with `PackedSequences` whose ids are rows of the batch; those of padding are
        the number of rows there are.

    Raises:
        ValueError: a trajectory is longer than the last of the lengths.
    """
    rows = rows[trains_BT[rows].any(axis=1)]
    end_R = trained_ends(trains_BT[rows] != 0)
    holding = _holding(end_R, lengths)
    packings = {length: best_fit_decreasing(end_R.tolist(), length) for length in holding}
    # Of lengths with as many tokens the shortest: attention costs the square of it.
    length = min(holding, key=lambda length: -(-len(packings[length]) // size) * length)
    bins = packings[length]
    plan = []
    for start in range(0, max(len(bins), 1), size):
        members = bins[start : start + size]
        packed = packed_sequences(
            members, rows, end_R, shape=(size, length), padding=len(trains_BT)
        )
        trained = max((np.count_nonzero(trains_BT[rows[row]]) for row in members), default=0)
        plan.append(MicroBatch(packed, length, trained_bound(int(trained), length)))
    return plan


def plan_shared(
    trains_BT: np.ndarray,
    rows: np.ndarray,
    ids_BT: np.ndarray,
    group_B: np.ndarray,
    *,
    size: int,
    lengths: Sequence[int],
) -> list[MicroBatch]:
    """Micro-batches of rows of one length that hold once what trajectories of a group start with.

    Args:
        trains_BT: nonzero on the tokens that train.
        rows: int [R], the trajectories; those without a token that trains are left out, as by
            `plan_packed`.
        ids_BT, group_B: of the batch.
        size: packed rows of a micro-batch.
        lengths: increasing; what a packed row may hold.

    Raises:
        ValueError: a trajectory is longer than the last of the lengths.
    """
    trajectories = len(rows)
    rows = rows[trains_BT[rows].any(axis=1)]
    end_R = trained_ends(trains_BT[rows] != 0)
    ends = dict(zip(rows.tolist(), end_R.tolist()))
    packed_rows, length = pack_families(
        ids_BT, ends, group_B, size=size, lengths=_holding(end_R, lengths)
    )
    plan = []
    for start in range(0, max(len(packed_rows), 1), size):
        layout = lay_out(
            packed_rows[start : start + size],
            ends,
            trains_BT,
            shape=(size, length),
            trajectories=trajectories,
        )
        trained = layout.wanted_RL.sum(axis=1).max()
        plan.append(MicroBatch(layout, length, trained_bound(int(trained), length)))
    return plan


def _holding(end_R: np.ndarray, lengths: Sequence[int]) -> list[int]:
    """The lengths of packed rows that hold each of some trajectories.

    Raises:
        ValueError: none does.
    """
    longest = int(end_R.max(initial=1))
    holding = [length for length in lengths if length >= longest]
    if not holding:
        raise ValueError(
            f"A trajectory of {longest} tokens fits no packed row: they hold {tuple(lengths)}."
        )
    return holding


def shared_share(trains_BT: np.ndarray, plan: Sequence[MicroBatch]) -> float:
    """Share of the trajectories' tokens that pass the model as part of another trajectory."""
    passed = needed = 0
    for rows, _, _ in plan:
        passed += np.count_nonzero(rows.source_RL < len(rows.rows_N))
        known = rows.rows_N[rows.rows_N < len(trains_BT)]
        needed += trained_ends(trains_BT[known] != 0).sum()
    return float(1 - passed / needed) if needed else 0.0


def padding_share(trains_BT: np.ndarray, plan: Sequence[MicroBatch]) -> float:
    """Share of the tokens in micro-batches that stand after the last one of their trajectory
    that trains, or belong to none."""
    computed = needed = 0
    for rows, length, _ in plan:
        if isinstance(rows, SharedPrefixes):
            computed += rows.source_RL.size
            needed += np.count_nonzero(rows.source_RL < len(rows.rows_N))
        elif isinstance(rows, PackedSequences):
            computed += rows.id_BT.size
            needed += np.count_nonzero(rows.id_BT < len(trains_BT))
        else:
            computed += rows.size * length
            needed += trained_ends(trains_BT[rows] != 0).sum()
    return float(1 - needed / computed)


def smallest_bucket(tokens: int, buckets: Sequence[int]) -> int:
    """The smallest of increasing lengths that holds `tokens`.

    Raises:
        ValueError: none does.
    """
    for length in buckets:
        if length >= tokens:
            return length
    raise ValueError(
        f"A trajectory of {tokens} tokens fits no length bucket: they are {tuple(buckets)}."
    )


def trained_bounds(length: int) -> list[int]:
    """What may bound the tokens that train in a row of `length`: a quarter of it, a half, all."""
    quarter = -(-length // 4)
    return sorted({min(quarter * times, length) for times in (1, 2, 4)})


def trained_bound(tokens: int, length: int) -> int:
    """The smallest of `trained_bounds` that is not exceeded by `tokens` that train."""
    return next(bound for bound in trained_bounds(length) if bound >= tokens)


def trained_ends(trains_RT: np.ndarray) -> np.ndarray:
    """Tokens of each row up to its last one that trains: int [R]."""
    after_last_R = trains_RT[:, ::-1].argmax(axis=1)
    return np.where(trains_RT.any(axis=1), trains_RT.shape[1] - after_last_R, 0)
