"""Ends a process that hangs, so that the processes that wait for it do not hang for ever."""

from __future__ import annotations

import contextlib
import faulthandler
from pathlib import Path

import jax


class Watchdog(contextlib.AbstractContextManager):
    """While entered, ends the process with code 1 when nothing is finished for too long.

    Before that it writes the stacks of all Python threads to `folder`/stacks-PROCESS.txt. A thread
    of the interpreter does both, so it also works while a call into the compiler or the network
    holds Python's lock. In a group of processes each has its own; those that wait for one that
    hangs finish nothing either.

    Args:
        seconds: without a call of `finished` after which the process ends; 0: never.
        folder: for the stacks; what others left there stays.
    """

    def __init__(self, seconds: float, folder: Path):
        self._seconds = seconds
        self._path = folder / f"stacks-{jax.process_index()}.txt"
        self._file = None

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a", encoding="utf-8")
            self.finished()
        return self

    def finished(self) -> None:
        """Says that something was finished: the time begins anew."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def __exit__(self, *_) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None
            if not self._path.stat().st_size:
                self._path.unlink()
