"""What the benchmarks of single parts share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax


def compare(sides: dict[str, Callable], runs: int, title: str = "") -> None:
    """Calls the sides in turn; prints their medians, and of each how many times as long as ours,
    the last one, it takes."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 2):
        for name, call in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if run >= 2:  # compilation and warm-up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    *_, ours = medians.values()
    for name, median in medians.items():
        print(f"{title}{name}: median {median * 1e3:.2f} ms of {runs}, ratio {median / ours:.2f}")
