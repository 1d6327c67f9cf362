"""The phases of a supervised start, as typed values of warm_start.phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    increasing_lengths,
)

_PHASE = Section(
    {
        "name": Setting("", "of the phase, in tables"),
        "steps": Setting(0, "optimizer steps", at_least(1)),
        "learning_rate": Setting(0.0, "at its highest", above(0)),
        "traces": Setting(0, "how many to write", at_least(1)),
        "mix": Setting({}, "what the traces show: options of the task's trace writer"),
        "only_correct": Setting(False, "leave out traces whose answer is wrong"),
        "arbitrary": Setting(True, "learn also what traces drew at random"),
        "evaluate_at": Setting((), "steps after which the policy is evaluated, beside the last"),
        "final_rate": Setting(0.1, "share of the rate that is left at the end", between(0, 1)),
        "context_weight": Setting(
            0.0, "weight of the loss on tokens that the policy did not write", between(0, 1)
        ),
        "length_buckets": Setting(
            (), "instead of warm_start.length_buckets", increasing_lengths(may_be_empty=True)
        ),
    }
)
_REQUIRED = ("name", "steps", "traces", "learning_rate", "mix")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a supervised start.

    Attributes:
        name: in tables.
        steps: optimizer steps.
        learning_rate: after the warm-up of the phase.
        traces: how many are written.
        mix: what they show; options of the task's trace writer.
        only_correct: whether traces with a wrong answer are left out.
        arbitrary: whether what traces drew at random is learned too, or only read.
        evaluate_at: steps after which the policy is evaluated, beside the last.
        final_rate: share of the learning rate that is left at the end.
        context_weight: weight of the loss on tokens that the policy did not write.
        length_buckets: lengths that batches are padded to; (): those of the warm start.
    """

    name: str
    steps: int
    learning_rate: float
    traces: int
    mix: Mapping[str, Any]
    only_correct: bool = False
    arbitrary: bool = True
    evaluate_at: tuple[int, ...] = ()
    final_rate: float = 0.1
    context_weight: float = 0.0
    length_buckets: tuple[int, ...] = ()


def phases_of(given: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The phases of warm_start.phases.

    Raises:
        ValueError: a phase lacks a key, has one that nothing reads, or a value out of range.
    """
    phases = []
    for number, phase in enumerate(given):
        where = f"warm_start.phases[{number}]"
        if not isinstance(phase, Mapping):
            raise ValueError(f"{where} must be a dict with the keys of a phase, not {phase!r}.")
        for key in _REQUIRED:
            if key not in phase:
                raise ValueError(f"{where} has no {key!r}.")
        if unknown := sorted(set(phase) - set(_PHASE.parts)):
            raise ValueError(
                f"{where}: unknown key {unknown[0]!r}; the keys are "
                f"{', '.join(sorted(_PHASE.parts))}."
            )
        filled = {name: setting.default for name, setting in _PHASE.parts.items()} | dict(phase)
        _PHASE.check(filled, f"{where}.")
        if not isinstance(filled["mix"], Mapping):
            raise ValueError(f"{where}.mix must be a dict, not {filled['mix']!r}.")
        for key in ("evaluate_at", "length_buckets"):
            filled[key] = tuple(filled[key])
        phases.append(Phase(**filled))
    return phases
