"""Which prompt tokens need no prefill because some slot's cache holds them already.

All prompts of a run begin alike, and the members of a group have one prompt. A newcomer keeps
what its own slot still holds of its prompt, or copies it from another slot (`programs.fork`),
also from one that is filled in the same round: then it waits for the next wave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# A copy is a call of its own: not worth it for fewer tokens than these.
_LEAST_GAIN = 8


class Share(NamedTuple):
    """What a newcomer need not compute.

    Attributes:
        wave: 0 for what can be done at once, w + 1 for copies of a newcomer of wave w.
        source: slot to copy from; None to keep what the own slot holds.
        length: tokens of the prompt that are there then.
    """

    wave: int
    source: int | None
    length: int


def plan_shares(
    cached_SX: np.ndarray,
    length_S: np.ndarray,
    newcomers: Sequence[tuple[int, Sequence[int]]],
    part_of: Sequence[int],
) -> list[Share]:
    """Plans the prefill of some newcomers.

    Args:
        cached_SX: token ids whose keys and values the slots hold.
        length_S: how many of them are valid.
        newcomers: (slot, prompt ids but for the last) in order; no slot twice.
        part_of: part of the cache each slot lies in; copies stay within one.

    Returns:
        One plan a newcomer. Copies of wave 0 are read before anything is written.
    """
    part_of = np.asarray(part_of)
    width = cached_SX.shape[1]
    new_NX = np.full((len(newcomers), width), -1, cached_SX.dtype)
    slots_N = np.array([slot for slot, _ in newcomers], np.int64)
    plan: list[Share] = []
    for number, (slot, ids) in enumerate(newcomers):
        wanted = np.asarray(ids, cached_SX.dtype)
        new_NX[number, : len(wanted)] = wanted
        held_S = np.minimum(_common(cached_SX, wanted), length_S)
        held_S[part_of != part_of[slot]] = 0
        best = Share(0, None, int(held_S[slot]))
        source = int(held_S.argmax())
        if held_S[source] >= best.length + _LEAST_GAIN:
            best = Share(0, source, int(held_S[source]))
        if number:
            coming_N = _common(new_NX[:number], wanted)
            coming_N[part_of[slots_N[:number]] != part_of[slot]] = 0
            earlier = int(coming_N.argmax())
            if coming_N[earlier] >= best.length + _LEAST_GAIN:
                best = Share(plan[earlier].wave + 1, int(slots_N[earlier]), int(coming_N[earlier]))
        plan.append(best)
    return plan


def _common(rows_NX: np.ndarray, wanted_Y: np.ndarray) -> np.ndarray:
    """Length of the common beginning of each row and `wanted_Y`."""
    if not len(wanted_Y) or not rows_NX.shape[1]:
        return np.zeros(len(rows_NX), np.int64)
    same_NY = rows_NX[:, : len(wanted_Y)] == wanted_Y
    return np.where(same_NY.all(axis=1), len(wanted_Y), same_NY.argmin(axis=1))
