"""Paths that a user gives, and files that are written whole."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from sr1_jax.storage import is_bucket
from sr1_jax.storage.copies import local_copy, written_to


def local_path(text: str, name: str) -> Path:
    """The path of a file or folder that is read.

    Args:
        text: what was given. What lies in a bucket (gs://) is brought to this host first.
        name: of the flag or key, for the message.

    Raises:
        ValueError: it is the address of something else: pathlib would make a local folder called
            `s3:` of it; or it is not in the bucket, or may not be read.
    """
    if is_bucket(text):
        return local_copy(text, name)
    check_address(text, name)
    return Path(text)


def check_address(text: str, name: str) -> None:
    """Refuses an address that is neither a path nor in a bucket.

    Raises:
        ValueError: naming the flag or key.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) and not is_bucket(text):
        raise ValueError(
            f"{name}={text}: only paths of the file system and of buckets (gs://bucket/name) are "
            "read and written."
        )


def disk_path(text: str, name: str) -> Path:
    """The path of a folder that is written to all the time, on a disk of this host.

    Raises:
        ValueError: it is an address.
    """
    check_address(text, name)
    if is_bucket(text):
        raise ValueError(f"{name}={text}: it is written all the time; name a folder on a disk.")
    return Path(text)


@contextlib.contextmanager
def output_path(text: str, name: str) -> Iterator[Path]:
    """The path of a file or folder to write; one in a bucket gets it at the end, or nothing after
    an error.

    Args:
        text: what was given.
        name: of the flag or key, for the message.

    Raises:
        ValueError: as `local_path`; or the bucket may not be written to.
    """
    check_address(text, name)
    if not is_bucket(text):
        yield Path(text)
        return
    with written_to(text, name) as path:
        yield path


@contextlib.contextmanager
def output_or_none(text: str, name: str) -> Iterator[Path | None]:
    """As `output_path`; None for "", which names none."""
    if not text:
        yield None
        return
    with output_path(text, name) as path:
        yield path


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
