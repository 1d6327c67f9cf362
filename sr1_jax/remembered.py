"""What took long to find out, kept in a file of JSON for the next start.

A file that is missing, damaged or cannot be written costs time, never more: what it would say is
found out again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sr1_jax.paths import sha256_of, write_whole

# Within so long of a change a file may change again without a trace in the time of its change.
_SETTLED_SECONDS = 2.0


def remembered(memory: Path, name: str, key: Any, find_out: Callable[[], Any]) -> Any:
    """What `find_out` returned for the same key before, or returns now.

    Args:
        memory: the file; its folder is made if need be.
        name: of what is asked. Of each the newest answer is kept.
        key: JSON-able; all that the answer depends on.
        find_out: returns what is JSON-able.
    """
    kept = _read(memory).get(name)
    if isinstance(kept, dict) and kept.get("key") == key and "value" in kept:
        return kept["value"]
    value = find_out()
    _keep(memory, name, key, value)
    return value


def remembered_sha256(path: Path, memory: Path) -> str:
    """The hash of a file's content, read once as long as its size and time stay.

    Args:
        path: of the file.
        memory: see `remembered`.
    """
    if not _settled(path, time.time()):
        return sha256_of(path)
    return remembered(memory, _hash_of(path), _version(path), lambda: sha256_of(path))


def note_sha256(path: Path, memory: Path, sha256: str, *, read_since: float) -> None:
    """Remembers the hash of a file that somebody else has read.

    Args:
        path: of the file.
        memory: see `remembered`.
        sha256: of its content.
        read_since: the time at which the reading began; a file that has changed since is left out.
    """
    if path.is_file() and _settled(path, read_since):
        _keep(memory, _hash_of(path), _version(path), sha256)


def _settled(path: Path, at: float) -> bool:
    return path.stat().st_mtime < at - _SETTLED_SECONDS


def _hash_of(path: Path) -> str:
    return f"sha256 of {path.resolve()}"


def _version(path: Path) -> dict[str, int]:
    about = path.stat()
    return {"bytes": about.st_size, "changed_ns": about.st_mtime_ns}


def _keep(memory: Path, name: str, key: Any, value: Any) -> None:
    # Read now, not before: another process may have written meanwhile.
    with contextlib.suppress(OSError):
        write_whole(memory, json.dumps({**_read(memory), name: {"key": key, "value": value}}))


def _read(memory: Path) -> dict[str, Any]:
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
