"""Seconds of the parts of a step."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Iterator

from sr1_jax.training.goodput import Goodput


class Stopwatch:
    """Measures parts by name; a part that comes again adds to its seconds.

    with watch("rollout"):
        ...

    Args:
        goodput: told of each part too, by the same name; None: nobody is.
    """

    def __init__(self, goodput: Goodput | None = None):
        self._goodput = goodput
        self._seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        with self._goodput(part) if self._goodput is not None else contextlib.nullcontext():
            yield
        self._seconds[part] += time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """Seconds by part, as seconds/<part>."""
        return {f"seconds/{part}": seconds for part, seconds in self._seconds.items()}


class Interval:
    """Tells when so much time has passed since it was made, or started again.

    Args:
        seconds: 0: it never does.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self._since = time.monotonic()

    def is_over(self) -> bool:
        """Whether the time has passed."""
        return 0 < self._seconds <= time.monotonic() - self._since
