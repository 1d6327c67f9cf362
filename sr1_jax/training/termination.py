"""A request to end, as a cloud sends before it takes a machine away."""

from __future__ import annotations

import signal
import threading


class Termination:
    """While entered, notes SIGTERM instead of dying of it.

    Attributes:
        noted: whether the signal has come.
    """

    def __init__(self):
        self.noted = False
        self._before = None

    def __enter__(self) -> Termination:
        # Elsewhere Python allows no handlers, and the signal keeps its meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self.noted = True
