"""Which program of the learner is which: the keys of `Learner.programs`.

A key says what a program does and with which static sizes; `str` of it is the name people read.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
    """What policy, reference and critic say of a micro-batch before any update.

    Attributes:
        length: tokens of a row.
        trained: bound on the tokens of a row that train.
    """

    length: int
    trained: int

    def __str__(self) -> str:
        return f"score {self.length}/{self.trained}"


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Advantages and returns of the whole batch."""

    def __str__(self) -> str:
        return "prepare"


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which trajectories have an advantage, where the others are left out of updates."""

    def __str__(self) -> str:
        return "kept"


@dataclasses.dataclass(frozen=True)
class Totals:
    """Counts over a mini-batch, by which its loss is normalised."""

    def __str__(self) -> str:
        return "totals"


@dataclasses.dataclass(frozen=True)
class Zeros:
    """The gradients that a mini-batch starts from.

    Attributes:
        model: "policy" or "critic".
    """

    model: str

    def __str__(self) -> str:
        return f"{self.model} zeros"


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """Gradients of a micro-batch, added to those before it.

    Attributes:
        model: "policy" or "critic".
        length: tokens of a row.
        trained: bound on the tokens of a row that train.
    """

    model: str
    length: int
    trained: int

    def __str__(self) -> str:
        return f"{self.model} accumulate {self.length}/{self.trained}"


@dataclasses.dataclass(frozen=True)
class Apply:
    """The optimizer's step with the gradients of a mini-batch.

    Attributes:
        model: "policy" or "critic".
    """

    model: str

    def __str__(self) -> str:
        return f"{self.model} apply"


@dataclasses.dataclass(frozen=True)
class Merge:
    """The policy with its adapters merged into the base, for rollouts."""

    def __str__(self) -> str:
        return "merge"
