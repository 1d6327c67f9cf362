"""Traces of some steps, for xprof and TensorBoard's profile plug-in."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

import jax


class ProfiledSteps(NamedTuple):
    """Steps of training to trace.

    Attributes:
        first, last: both are traced.
    """

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> ProfiledSteps | None:
        """Reads "10-12" or "10"; "" gives None.

        Raises:
            ValueError: it is neither.
        """
        if not text:
            return None
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"--profile_steps={text}: name a step or the first and the last of several, from 1 "
                "on, as in 10-12. The first step of a run compiles; later ones tell more."
            )
        return cls(first, last)


class Profiler(contextlib.AbstractContextManager):
    """Traces steps into a folder; every process writes its own file there.

    Args:
        folder: made when the trace begins.
        steps: None: no trace is made.
    """

    def __init__(self, folder: Path, steps: ProfiledSteps | None):
        self._folder, self._steps, self._tracing = folder, steps, False

    def at(self, step: int) -> None:
        """Says that a step begins."""
        wanted = self._steps is not None and self._steps.first <= step <= self._steps.last
        if self._tracing and not wanted:
            self._stop()
        elif wanted and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def __exit__(self, *_) -> None:
        if self._tracing:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False
        print(f"The trace is in {self._folder}: xprof --logdir={self._folder}", flush=True)
