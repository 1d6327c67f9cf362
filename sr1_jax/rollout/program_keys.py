"""Which program of the rollout engine is which, and which of them there are.

A key says what a program does and with which static sizes; `str` of it is the name people read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections

from sr1_jax.rollout.lockstep import SlotLayout


@dataclasses.dataclass(frozen=True)
class Reshard:
    """Moves parameters of the policy into the layout of rollouts.

    Attributes:
        part: "layer": one of the stacked layers; "ends": embedding, last norm and head.
    """

    part: str

    def __str__(self) -> str:
        return f"reshard {self.part}"


@dataclasses.dataclass(frozen=True)
class Extend:
    """Appends tokens to the caches of some slots.

    Attributes:
        rows: slots, over all devices.
        columns: tokens of each.
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"extend {self.rows}×{self.columns}"


@dataclasses.dataclass(frozen=True)
class Fork:
    """Copies the beginnings of caches to other slots.

    Attributes:
        rows: slots that are copied to, over all devices.
        length: positions of each.
    """

    rows: int
    length: int

    def __str__(self) -> str:
        return f"fork {self.rows}×{self.length}"


@dataclasses.dataclass(frozen=True)
class Decode:
    """Samples tokens.

    Attributes:
        slots: that sample, over all devices.
    """

    slots: int

    def __str__(self) -> str:
        return f"decode {self.slots}"


def fork_lengths(positions: int) -> list[int]:
    """How many positions a call of `programs.fork` copies: a quarter of the cache, or all."""
    return sorted({-(-positions // 4), positions})


def fork_length(longest: int, positions: int) -> int:
    """The smallest of `fork_lengths` that holds the longest beginning that is copied."""
    return next(length for length in fork_lengths(positions) if length >= longest)


def extend_columns(tokens: int, buckets: Sequence[int]) -> int:
    """Columns of the call that appends these tokens, or as many of them as any call can.

    Args:
        tokens: at least 1.
        buckets: `rollout.extend_buckets`.
    """
    return next((size for size in buckets if size >= tokens), buckets[-1])


def programs_on_slots(
    config: ml_collections.ConfigDict, layout: SlotLayout, positions: int
) -> list[Extend | Fork | Decode]:
    """Every program that a run of the engine may call on its slots.

    Args:
        config: see `rollout.default_config`.
        layout: where slots are.
        positions: of a slot's cache.
    """
    parts = config.slots // layout.per_part
    found: list[Extend | Fork | Decode] = []
    for rows in layout.row_counts:
        found += [Extend(rows * parts, columns) for columns in config.extend_buckets]
        found += [Fork(rows * parts, length) for length in fork_lengths(positions)]
    return found + [Decode(rows * parts) for rows in layout.decode_counts]
