"""Slots split over the devices of one or several processes, and what those have to agree on.

Every process holds the slots of its own devices and runs its own questions on them, but all call
the same programs with the same shapes in the same order. Numbers that decide what is called next
are therefore agreed on first, past the devices, which go on with what they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sr1_jax import hosts
from sr1_jax.sharding import RULES, named


def row_counts(per_part: int) -> list[int]:
    """All slots of a part, a half of them, a quarter, … down to a sixteenth; increasing."""
    rows, counts = per_part, [per_part]
    while rows > -(-per_part // 16):
        rows = -(-rows // 2)
        counts.append(rows)
    return sorted(set(counts))


def decode_counts(per_part: int, sizes: int, mesh: Mesh) -> list[int]:
    """Rows of a part that the decode program comes in for `rollout.decode_sizes`; increasing.

    A CPU computes idle rows like others; a TPU takes as long for few rows as for many.
    """
    if sizes == 0:
        sizes = 2 if mesh.devices.flat[0].platform == "cpu" and per_part >= 8 else 1
    return sorted({per_part, -(-per_part // 4)}) if sizes == 2 else [per_part]


class SlotLayout:
    """Where slots are.

    Args:
        mesh: of `sharding.make_mesh`.
        slots: of all processes together.
        decode_sizes: see `rollout.default_config`.

    Attributes:
        parts: parts of the slots, one for each place on the batch axes, that this process holds.
        per_part: slots of a part.
        slots: slots that this process holds.
        part_of: part of each of them.
        row_counts: sizes that programs over some rows of each part come in.
        decode_counts: sizes that the decode program comes in.

    Raises:
        ValueError: slots do not divide over the parts, or a part spans two processes.
    """

    def __init__(self, mesh: Mesh, slots: int, decode_sizes: int = 1):
        batch = [mesh.shape[axis] for axis in RULES["batch"]]
        devices = mesh.devices.reshape(int(np.prod(batch)), -1)
        self.per_part, rest = divmod(slots, len(devices))
        if rest:
            raise ValueError(
                f"rollout.slots={slots} does not divide over the {len(devices)} devices of mesh "
                "axes data and fsdp."
            )
        owners = [{device.process_index for device in row} for row in devices]
        if any(len(owner) > 1 for owner in owners):
            own = len(devices[0]) // max(map(len, owners))
            raise ValueError(
                f"mesh.tensor={len(devices[0])}: axis tensor spans several processes, but a slot "
                f"of the rollout engine lives in one. Set it to {own}, or a divisor of that."
            )
        # Of how many rows the programs of a part may be: few, and with little padding.
        self.row_counts = row_counts(self.per_part)
        self.decode_counts = decode_counts(self.per_part, decode_sizes, mesh)
        self._sharding = named(mesh, "batch")
        self._alone = len(set().union(*owners)) == 1
        self.parts = sum(owner == {jax.process_index()} for owner in owners)
        self.slots = self.parts * self.per_part
        self.part_of = np.arange(self.slots) // self.per_part

    def rows(self, count: int) -> int:
        """The smallest of `row_counts` that holds `count` rows."""
        return next(rows for rows in self.row_counts if rows >= count)

    def calls(self, count: int) -> list[int]:
        """Sizes of the calls that run a program over `count` rows of each part: one, or several
        of them, largest first, where that computes fewer rows by an eighth or more."""
        whole = self.rows(count)
        if whole == self.row_counts[0]:
            return [whole]
        smaller = self.row_counts[self.row_counts.index(whole) - 1]
        pieces = [smaller, *self.calls(count - smaller)]
        return pieces if 8 * sum(pieces) <= 7 * whole else [whole]

    def place(self, tree: Any) -> Any:
        """Arrays of this process's parts as global ones, split along the first axis."""
        if self._alone:
            return jax.device_put(tree, self._sharding)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self._sharding, x), tree
        )

    def read(self, tree: Any) -> Any:
        """This process's parts of global arrays, in NumPy."""
        if self._alone:
            return jax.device_get(tree)

        def one(x):
            by_start = {s.index[0].start or 0: s.data for s in x.addressable_shards}
            return np.concatenate([np.asarray(by_start[start]) for start in sorted(by_start)])

        return jax.tree.map(one, tree)

    def most(self, numbers: Sequence[int]) -> np.ndarray:
        """The largest of each number over all processes."""
        return self._gathered(numbers).max(axis=0)

    def total(self, numbers: Sequence[int]) -> np.ndarray:
        """The sum of each number over all processes."""
        return self._gathered(numbers).sum(axis=0)

    def _gathered(self, numbers: Sequence[int]) -> np.ndarray:
        numbers = np.asarray(numbers, np.int32)
        if self._alone:
            return numbers[None]
        # From host to host: the programs dispatched so far go on meanwhile.
        parts = hosts.exchange(numbers.tobytes())
        return np.stack([np.frombuffer(part, np.int32) for part in parts])
