"""Metrics of a step of the learner from those of its updates, and of these from micro-batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np

# Metrics that are neither sums nor means of their parts, by the end of their key.
EXTREMES = {"ratio_max": max, "ratio_min": min}


def over_updates(history: Sequence[Mapping[str, SupportsFloat]]) -> dict[str, float]:
    """Means over the updates that were done, and how many of each model were skipped.

    Args:
        history: metrics of each update, at least one; keys are <model>/<name>, and each model has
            <model>/skipped, 1 where the update was not done, else 0.

    Returns:
        By key the mean over the updates of that model that were done, or over all of them where
        none was: it is then not finite. NaN, of an update all of whose trajectories were left out,
        counts only where there is nothing else. <model>/skipped is a count, and of `EXTREMES` it is
        the extreme value.
    """
    found = {}
    for key in history[0]:
        model, _, name = key.partition("/")
        skipped = f"{model}/skipped"
        values = [float(logged[key]) for logged in history]
        done = [value for value, logged in zip(values, history) if not logged[skipped]]
        if key == skipped:
            found[key] = sum(values)
        else:
            known = [value for value in done if not math.isnan(value)]
            found[key] = float(EXTREMES.get(name, np.mean)(known or done or values))
    return found
