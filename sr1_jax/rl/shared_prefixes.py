"""Rows that hold what trajectories of a question start with once.

The samples of a question have its prompt in common, often a query and what was found with it:
without their answers they are the same. Laid out as trees of tokens (`packed.TokenTrees`), what
they share passes the model once. Each token is given the same hidden state as in a row of its own,
so losses and gradients are the same; and these are computed trajectory by trajectory, from arrays
to which the log-probabilities of the trees' tokens are handed out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sr1_jax.models.packed import TokenTrees
from sr1_jax.rl.packing import best_fit_decreasing


class SharedPrefixes(NamedTuple):
    """Where the tokens of R rows come from, and where those of N trajectories stand in them.

    Attributes:
        rows_N: int32, row of the batch that each trajectory is; the number of rows there are
            where there is none.
        place_NT: int32, where each of its tokens stands in the flattened [R · L] rows; R · L
            where it is not needed.
        source_RL: int32, the trajectory of rows_N that each token is taken from; N is padding.
        wanted_RL: float32, 1 where a token trains in any of its trajectories.
        trees: [R, L] each; its positions are also where in that trajectory the token stands.
    """

    rows_N: jax.Array | np.ndarray
    place_NT: jax.Array | np.ndarray
    source_RL: jax.Array | np.ndarray
    wanted_RL: jax.Array | np.ndarray
    trees: TokenTrees


class Family(NamedTuple):
    """Trajectories that share a tree.

    Attributes:
        members: rows of the batch, each after the one that it has most tokens in common with.
        shared: of each member, how many of its tokens the tree of those before it holds.
        tokens: of the tree.
    """

    members: list[int]
    shared: list[int]
    tokens: int


def families_of(
    ids_BT: np.ndarray, ends: dict[int, int], group_B: np.ndarray, *, capacity: int
) -> list[Family]:
    """Trajectories of each group, in trees of at most `capacity` tokens, filled one by one.

    Args:
        ids_BT: tokens.
        ends: of the rows wanted, the tokens up to the last one that is needed.
        group_B: trajectories of one question share a number.
        capacity: of a tree; no trajectory needs more.
    """
    groups: dict[int, list[int]] = {}
    for row in ends:
        groups.setdefault(int(group_B[row]), []).append(row)
    found = []
    for rows in groups.values():
        # In the order of a dictionary: a neighbour is the one with the longest common start.
        rows = sorted(rows, key=lambda row: (ids_BT[row, : ends[row]].tolist(), row))
        family = Family([], [], 0)
        for row in rows:
            shared = 0
            if family.members:
                last = family.members[-1]
                shared = common_start(ids_BT[last, : ends[last]], ids_BT[row, : ends[row]])
                if family.tokens + ends[row] - shared > capacity:
                    found.append(family)
                    family, shared = Family([], [], 0), 0
            tokens = family.tokens + ends[row] - shared
            family = Family([*family.members, row], [*family.shared, shared], tokens)
        found.append(family)
    return found


def common_start(a_T: np.ndarray, b_T: np.ndarray) -> int:
    """How many tokens two sequences have in common before they first differ, or one ends."""
    size = min(len(a_T), len(b_T))
    differ = np.flatnonzero(a_T[:size] != b_T[:size])
    return int(differ[0]) if len(differ) else size


def pack_families(
    ids_BT: np.ndarray,
    ends: dict[int, int],
    group_B: np.ndarray,
    *,
    size: int,
    lengths: Iterable[int],
) -> tuple[list[list[Family]], int]:
    """Families in rows of the length with which the fewest tokens are computed.

    Args:
        ids_BT, ends, group_B: see `families_of`.
        size: rows of a micro-batch; the last one may have empty ones.
        lengths: increasing; each holds the longest trajectory.

    Returns:
        The families of each row, and the rows' length.
    """
    longest = max(ends.values(), default=1)
    alone = [Family([row], [0], end) for row, end in ends.items()]
    best = None
    for length in lengths:
        # Large trees leave room that nothing fills: where little is shared, small ones, or none,
        # need fewer rows.
        capacities = [capacity for capacity in (length, length // 2) if capacity >= longest]
        trees = [families_of(ids_BT, ends, group_B, capacity=capacity) for capacity in capacities]
        for families in (*trees, alone):
            bins = best_fit_decreasing([family.tokens for family in families], length)
            computed = -(-len(bins) // size) * length
            # Of lengths with as many tokens the shortest: attention costs the square of it.
            if best is None or computed < best[0]:
                rows = [[families[index] for index in members] for members in bins]
                best = computed, rows, length
    return best[1], best[2]


def lay_out(
    rows: Sequence[Sequence[Family]],
    ends: dict[int, int],
    trains_BT: np.ndarray,
    *,
    shape: tuple[int, int],
    trajectories: int,
) -> SharedPrefixes:
    """Where the tokens of a micro-batch come from and stand.

    Args:
        rows: the families of each, fewer than the shape has or as many.
        ends: of each row of the batch, the tokens needed.
        trains_BT: nonzero on the tokens that train.
        shape: R and L.
        trajectories: N, at least as many as there are.
    """
    width = shape[1]
    rows_N = np.full(trajectories, len(trains_BT), np.int32)
    place_NT = np.full((trajectories, trains_BT.shape[1]), np.prod(shape), np.int32)
    wanted_RL = np.zeros(shape, np.float32)
    source_RL, position_RL = np.full(shape, trajectories, np.int32), np.zeros(shape, np.int32)
    own = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
    parent_RL, end_RL = own.copy(), own + 1
    number = 0
    for row, families in enumerate(rows):
        stop = 0
        for family in families:
            before_T = np.zeros(0, np.int32)  # where the tokens of the last member stand
            for member, shared in zip(family.members, family.shared):
                new = np.arange(stop, stop + ends[member] - shared, dtype=np.int32)
                place_T = np.concatenate([before_T[:shared], new])
                stop += len(new)
                source_RL[row, new] = number
                position_RL[row, new] = np.arange(shared, ends[member])
                parent_RL[row, place_T[1:]] = place_T[:-1]
                end_RL[row, place_T] = stop
                wanted_RL[row, place_T[trains_BT[member, : ends[member]] != 0]] = 1
                rows_N[number] = member
                place_NT[number, : len(place_T)] = row * width + place_T
                number, before_T = number + 1, place_T
    trees = TokenTrees(position_RL, parent_RL, end_RL)
    return SharedPrefixes(rows_N, place_NT, source_RL, wanted_RL, trees)


def groups_together(order: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """The same rows, those of a group after one another, where its first one stands."""
    _, first, group = np.unique(group_B[order], return_index=True, return_inverse=True)
    return order[np.argsort(first[group], kind="stable")]


def shared_prefixes_shapes(
    *, rows: int, length: int, trajectories: int, longest: int
) -> SharedPrefixes:
    """Shapes of a layout: R rows of L tokens for N trajectories of at most T."""

    def whole(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    of_rows = whole(rows, length)
    return SharedPrefixes(
        rows_N=whole(trajectories),
        place_NT=whole(trajectories, longest),
        source_RL=of_rows,
        wanted_RL=jax.ShapeDtypeStruct((rows, length), jnp.float32),
        trees=TokenTrees(*[of_rows] * 3),
    )


def tokens_of_trees(x_NT: jax.Array, layout: SharedPrefixes) -> jax.Array:
    """What stands at each token of the trajectories, for each of the rows: [R, L], 0 on padding."""
    at = layout.source_RL, layout.trees.position_BT
    return x_NT.at[at].get(mode="fill", fill_value=0)


def tokens_of_trajectories(x_RL: jax.Array, layout: SharedPrefixes) -> jax.Array:
    """What stands at each token of the rows, for each trajectory: [N, T], 0 where none is."""
    return x_RL.reshape(-1).at[layout.place_NT].get(mode="fill", fill_value=0)
