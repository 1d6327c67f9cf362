"""The phases of a supervised start, as typed values of warm_start.phases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr1_jax.paths import local_paths
from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    increasing_lengths,
)

# What a phase imitates: the training questions, answered at once with their golden answers.
ANSWERS = "answers"

_PHASE = Section(
    {
        "name": Setting("", "of the phase, in tables"),
        "steps": Setting(0, "optimizer steps; 0: epochs says how many", at_least(0)),
        "epochs": Setting(0.0, "passes over the examples, instead of steps", at_least(0)),
        "learning_rate": Setting(0.0, "at its highest", above(0)),
        "examples": Setting(
            "",
            "what is imitated: nothing for traces of the task, answers for the training questions "
            "with their golden answers, or JSON lines of examples, several files with commas",
        ),
        "traces": Setting(0, "how many examples; 0: all there are", at_least(0)),
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
_REQUIRED = ("name", "learning_rate")
# Keys that only traces of the task have: they are written for a phase, by these options.
_OF_TRACES = ("mix", "only_correct", "arbitrary")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a supervised start.

    Attributes:
        name: in tables.
        steps: optimizer steps; 0 where `epochs` says how many.
        learning_rate: after the warm-up of the phase.
        examples: what is imitated: "" for traces that the task writes, `ANSWERS`, or files.
        traces: how many examples; 0, which the task's traces cannot have: all there are.
        epochs: passes over the examples, instead of steps.
        mix: what traces show; options of the task's trace writer.
        only_correct: whether traces with a wrong answer are left out.
        arbitrary: whether what traces drew at random is learned too, or only read.
        evaluate_at: steps after which the policy is evaluated, beside the last.
        final_rate: share of the learning rate that is left at the end.
        context_weight: weight of the loss on tokens that the policy did not write.
        length_buckets: lengths that batches are padded to; (): those of the warm start.
    """

    name: str
    learning_rate: float
    steps: int = 0
    epochs: float = 0.0
    examples: str = ""
    traces: int = 0
    mix: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only_correct: bool = False
    arbitrary: bool = True
    evaluate_at: tuple[int, ...] = ()
    final_rate: float = 0.1
    context_weight: float = 0.0
    length_buckets: tuple[int, ...] = ()

    def steps_for(self, examples: int, batch: int) -> int:
        """Optimizer steps of the phase, where it has so many examples."""
        return self.steps or max(1, math.ceil(self.epochs * examples / batch))

    @property
    def files(self) -> list[Path]:
        """The files of examples, if that is what is imitated.

        Raises:
            ValueError: one is in a bucket.
        """
        if self.examples in ("", ANSWERS):
            return []
        return local_paths(self.examples, f"examples of warm_start.phases {self.name!r}")


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
        of_task = not phase.get("examples")
        for key in ("traces", "mix") if of_task else ():
            if key not in phase:
                raise ValueError(f"{where} has no {key!r}, and no examples.")
        if of_task and phase["traces"] == 0:
            raise ValueError(f"{where}.traces must be at least 1, not 0.")
        if not of_task and (found := [key for key in _OF_TRACES if key in phase]):
            raise ValueError(
                f"{where}.{found[0]} is an option of the task's traces, but examples="
                f"{phase['examples']!r}: leave one of the two out."
            )
        if bool(phase.get("steps")) == bool(phase.get("epochs")):
            raise ValueError(f"{where} needs steps or epochs, above 0, and not both.")
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
