"""What the processes of a cluster tell each other between two programs.

All processes must call these functions in the same order. With one process they cost nothing.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sr1_jax import hosts

_T = TypeVar("_T")

# Bytes of a process up to which hosts tell each other directly. What is longer goes over the
# devices, whose network is faster and has no centre.
_SHORT = 1 << 14
_SIZE = struct.Struct(">Q")
# Bytes of a process that one collective carries: few shapes, so few programs, and little memory
# on the devices.
_PIECES = (1 << 16, 1 << 20)


def gather(value: _T) -> list[_T]:
    """Everyone's `value`, by process; any picklable object."""
    if jax.process_count() == 1:
        return [value]
    pickled = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    short = pickled if len(pickled) <= _SHORT else b""
    told = hosts.exchange(_SIZE.pack(len(pickled)) + short)
    sizes = [_SIZE.unpack_from(one)[0] for one in told]
    longest = max(sizes)
    # What comes from here was pickled by a process of this very run.
    if longest <= _SHORT:
        return [pickle.loads(one[_SIZE.size :]) for one in told]
    data = np.frombuffer(pickled, np.uint8)
    size = next((size for size in _PIECES if size >= longest), _PIECES[-1])
    parts = []
    for start in range(0, longest, size):
        piece = np.zeros(size, np.uint8)
        mine = data[start : start + size]
        piece[: len(mine)] = mine
        parts.append(multihost_utils.process_allgather(piece))
    rows = np.concatenate(parts, axis=1)
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, sizes)]


def from_first(value: _T) -> _T:
    """The `value` of process 0."""
    return gather(value if jax.process_index() == 0 else None)[0]


def check_same(what: str, value: Any) -> None:
    """Refuses to go on if `value` is not the same in all processes.

    Args:
        what: it is, for the message.
        value: dicts, lists and plain values.

    Raises:
        ValueError: in every process; names the first difference.
    """
    first, *others = gather(value)
    for process, other in enumerate(others, start=1):
        if found := _difference(first, other):
            key, wanted, here = found
            raise ValueError(
                f"{what} of process {process}: {key}{here!r}, but {wanted!r} in process 0. Start "
                "all processes with the same flags and the same files."
            )


def _difference(first: Any, other: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        for key in [*first, *(key for key in other if key not in first)]:
            inner = f"{where}.{key}" if where else str(key)
            if found := _difference(first.get(key), other.get(key), inner):
                return found
        return None
    return None if first == other else (f"{where} is " if where else "", first, other)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    gather(None)


def lead_on_file_system(folder: Path) -> int:
    """The first process that sees the same files in `folder` as this one: 0, where it is shared.

    Args:
        folder: made if need be.
    """
    if jax.process_count() == 1:
        return 0
    me = jax.process_index()
    folder.mkdir(parents=True, exist_ok=True)
    run = from_first(uuid.uuid4().hex[:8])

    def mark(process: int) -> Path:
        return folder / f".process-{run}-{process}"

    mark(me).touch()
    try:
        wait_for_all()
        # Asked for by name: a network file system may list a folder as it was a minute ago.
        lead = next(process for process in range(me + 1) if mark(process).exists())
        wait_for_all()
    finally:
        with contextlib.suppress(OSError):
            mark(me).unlink()
    return lead


def once_a_file_system(folder: Path, prepare: Callable[[], _T]) -> _T:
    """Calls `prepare` in all processes, but first in one of each that see the same `folder`.

    What the first has made the others find, wherever they run: on file systems of their own each
    makes its own, at the same time.

    Args:
        folder: what `prepare` makes stands there.
        prepare: makes what is missing, and returns it.
    """
    leads = lead_on_file_system(folder) == jax.process_index()
    made = prepare() if leads else None
    wait_for_all()
    return made if leads else prepare()
