"""Paths that a user gives."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path


def local_path(text: str, name: str) -> Path:
    """The path of a file or folder.

    Args:
        text: what was given.
        name: of the flag or key, for the message.

    Raises:
        ValueError: it is the address of a bucket or the like: pathlib would make a local folder
            called `gs:` of it.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        raise ValueError(
            f"{name}={text}: only paths of the file system are read and written. Mount the bucket, "
            "as tpu_scripts do with gcsfuse (docs/clusters.md), and give the path below the mount."
        )
    return Path(text)


def path_or_none(text: str, name: str) -> Path | None:
    """As `local_path`; None for "", which names none."""
    return local_path(text, name) if text else None


def local_paths(text: str, name: str) -> list[Path]:
    """The paths of several files, given with commas between them; "" names none.

    Raises:
        ValueError: as `local_path`.
    """
    return [local_path(part, name) for part in text.split(",")] if text else []


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the name of `path` at the end: that is there whole or not at
    all. An error leaves nothing behind.

    Several processes may write the same at a time: each has a file of its own.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file of text as `replacing` says; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hash of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
