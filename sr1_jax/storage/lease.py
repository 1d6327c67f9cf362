"""A lease on a folder in a bucket: one run at a time holds it, and a dead one loses it soon.

The holder writes the lease object anew every few seconds, each time on condition that it has the
generation that the holder last gave it. Who wants it watches that generation: as long as it moves,
the holder lives; where it has stood still for longer than any living holder lets it, the watcher
writes the object itself, on condition that it is still that one. Of two watchers one succeeds. No
clocks of two machines are ever compared. (Gray and Cheriton 1989, "Leases: an efficient
fault-tolerant mechanism for distributed file cache consistency"; conditions on generations:
https://cloud.google.com/storage/docs/request-preconditions.)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from sr1_jax.storage import objects
from sr1_jax.storage.objects import BucketAway

LEASE = ".lease"
# A holder writes so often, and without a write for so long it is dead. Longer than a write is
# waited for, so that a slow service does not make two holders of one.
RENEW_SECONDS = 8.0
DEAD_SECONDS = 40.0


class LeaseLost(OSError):
    """Another run has taken over what this one was working on."""


class Lease(contextlib.AbstractContextManager):
    """Holds the lease of a folder while entered.

    Args:
        url: of the folder in a bucket.
        what: the flag that named it, for messages.
        renew_seconds, dead_seconds: see above.

    Raises:
        ValueError: on entering, another run holds it.
    """

    def __init__(
        self,
        url: str,
        what: str,
        *,
        renew_seconds: float = RENEW_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
    ):
        self._folder, self._what = url, what
        self._url = objects.join(url, LEASE)
        self._renew_seconds, self._dead_seconds = renew_seconds, dead_seconds
        self._run, self._writes = uuid.uuid4().hex, 0
        self._generation, self._renewed = objects.NEW, 0.0
        self._lost: str | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._take()
        self._thread.start()
        return self

    def check(self) -> None:
        """Returns where the lease is held for certain; renews it where that is not known.

        Raises:
            LeaseLost: another run has it.
            BucketAway: it cannot be found out.
        """
        with self._lock:
            if self._lost is None and self._age() > self._dead_seconds / 2:
                self._renew()
            if self._lost is not None:
                raise LeaseLost(
                    f"{self._folder}: {self._lost} has taken over this run, since nothing was "
                    "heard of it for too long. This one ends; what it had saved before stays."
                )

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(OSError):  # a successor waits a little longer then
                objects.delete(self._url, self._generation)

    def _age(self) -> float:
        return time.monotonic() - self._renewed

    def _take(self) -> None:
        """Writes the lease for the first time, after a dead holder too."""
        seen, since, told = objects.NEW, time.monotonic(), False
        while True:
            began = time.monotonic()
            if self._written(seen):
                self._renewed = began
                return
            generation, holder = self._read()
            if generation == objects.NEW or _is_dead(holder):
                seen = generation
                continue
            if not told:
                seen, since, told = generation, began, True
                print(
                    f"{self._folder} was in use by {_name(holder)}; looking whether it lives, for "
                    f"up to {self._dead_seconds:g} s.",
                    flush=True,
                )
            if generation != seen:
                raise ValueError(
                    f"{self._what}={self._folder} is in use by {_name(holder)}: two runs in one "
                    "workdir would overwrite each other's files. Wait for it to end, stop it, or "
                    f"give another {self._what}."
                )
            while generation == seen and time.monotonic() - since < self._dead_seconds:
                time.sleep(self._renew_seconds / 4)
                generation, holder = self._read()

    def _read(self) -> tuple[str, dict]:
        """Generation and holder of the lease; `NEW` and nobody where there is none."""
        try:
            stored = objects.stat(self._url)
            holder = json.loads(objects.read(self._url))
        except FileNotFoundError:
            return objects.NEW, {}
        except ValueError:
            return stored.generation, {}
        return stored.generation, holder if isinstance(holder, dict) else {}

    def _written(self, generation: str) -> bool:
        """Writes the lease if it has this generation, and says whether it is ours then."""
        self._writes += 1
        me = _this_process() | {"run": self._run, "writes": self._writes}
        try:
            data = json.dumps(me).encode("utf-8")
            self._generation = objects.write(self._url, data, generation).generation
            return True
        except FileExistsError:
            # It may be our own write, whose answer was lost.
            found, holder = self._read()
            if holder.get("run") != self._run:
                return False
            self._generation = found
            return True

    def _renew(self) -> None:
        began = time.monotonic()
        if self._written(self._generation):
            self._renewed = began
            return
        _, holder = self._read()
        self._lost = _name(holder)

    def _keep(self) -> None:
        while not self._over.wait(self._renew_seconds):
            # While the bucket is away nobody can take the lease either; `check` tells.
            with self._lock, contextlib.suppress(BucketAway):
                self._renew()
            if self._lost is not None:
                return


def _this_process() -> dict[str, str]:
    """What tells this process from all others, on its own machine."""
    return {
        "holder": f"process {os.getpid()} on host {socket.gethostname()}",
        "process": str(os.getpid()),
        "began": _began(os.getpid()),
        "machine": _machine(),
    }


def _machine() -> str:
    """The kernel since it was started, and the group of processes that know each other's numbers;
    "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(process: str | int) -> str:
    """When a process of this machine began, in ticks; "" of one that there is not."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _is_dead(holder: dict) -> bool:
    """Whether a holder is known for certain to be dead: a process that this machine had."""
    here = holder.get("machine") and holder["machine"] == _machine()
    return bool(here) and _began(holder.get("process", "")) != holder.get("began")


def _name(holder: dict) -> str:
    text = str(holder.get("holder") or "another run")
    return "".join(c for c in text if c.isprintable())
