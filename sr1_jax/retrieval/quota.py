"""How many requests may still be sent, over all threads; with a file, over processes and starts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

_MARK = b"."  # one for each request


class Quota:
    """Counts requests, and refuses those beyond a limit; may be asked from several threads.

    Args:
        most: requests; None: no limit.
        ledger: a file that all who share the limit write a character to for each request; made
            with its folder if need be. None: requests of this object are counted.

    Raises:
        ValueError: the file is something else.
        OSError: it cannot be written to.
    """

    def __init__(self, most: int | None, ledger: Path | None = None):
        self.most = most
        self._ledger, self._used, self._lock = ledger, 0, threading.Lock()
        if ledger is None:
            return
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with open(ledger, "a+b") as file:
            file.seek(0)
            if file.read().strip(_MARK):
                raise ValueError(f"{ledger} is no ledger of requests; name another file.")

    @property
    def used(self) -> int:
        """Requests so far; with a ledger, those of all who share it."""
        return self._used if self._ledger is None else self._ledger.stat().st_size

    def take(self) -> bool:
        """Counts one request more, unless there may be none; says whether there may.

        Raises:
            OSError: the ledger cannot be written to.
        """
        if self._ledger is not None:
            return self._take_from_ledger()
        with self._lock:
            if self.most is not None and self._used >= self.most:
                return False
            self._used += 1
            return True

    def _take_from_ledger(self) -> bool:
        # Opened each time: each thread needs a lock of its own, and the file may be moved away.
        with open(self._ledger, "ab", buffering=0) as file:
            # A file system that knows no locks may let a few requests too many pass.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if self.most is not None and os.fstat(file.fileno()).st_size >= self.most:
                return False
            file.write(_MARK)
            return True
