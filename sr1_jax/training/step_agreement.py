"""What the processes of a run agree on after each step, so that all go on or none does."""

from __future__ import annotations

import resource
from typing import NamedTuple

from sr1_jax.agreement import gather


class Agreed(NamedTuple):
    """Equal in all processes.

    Attributes:
        metrics: of the first process; those of others may differ in their last bits.
        peak_memory_gib: of the process that has used most.
        told_to_end: whether any process was.
    """

    metrics: dict[str, float]
    peak_memory_gib: float
    told_to_end: bool


def agree(metrics: dict[str, float], told_to_end: bool) -> Agreed:
    """Brings together what each process has found; all have to call it."""
    said = gather((metrics, peak_memory_gib(), told_to_end))
    return Agreed(said[0][0], max(memory for _, memory, _ in said), any(told for *_, told in said))


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
