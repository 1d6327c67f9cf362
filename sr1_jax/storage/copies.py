"""What is read from buckets as from a disk, and what is written there in the end."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from sr1_jax.storage import objects
from sr1_jax.storage.objects import BucketAway
from sr1_jax.storage.places import scratch, stand_in
from sr1_jax.storage.synced import SyncedFolder

# What this process has compared with the bucket already: it reads one and the same to its end.
_compared: dict[str, Path] = {}


def local_copy(url: str, name: str) -> Path:
    """A copy of a file or folder on this host: brought once, compared with its checksums, and
    again only what was changed since.

    Args:
        url: in a bucket.
        name: of the flag or key, for messages.

    Raises:
        ValueError: there is no such file or folder, or it may not be read.
        OSError: it cannot be written here.
    """
    if url in _compared:
        return _compared[url]
    copy = stand_in(url, "copies")
    try:
        found = SyncedFolder(copy, url).fetch()
    except FileNotFoundError as error:
        raise ValueError(f"{name}={url}: there is no bucket {objects.split(url)[0]}.") from error
    except BucketAway as error:
        raise ValueError(f"{name}={url} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"{name}={url}: there is no such file or folder in the bucket.")
    _compared[url] = copy
    return copy


def forget() -> None:
    """Compares all anew: for tests."""
    _compared.clear()


@contextlib.contextmanager
def written_to(url: str, name: str) -> Iterator[Path]:
    """A local path for what is to be written; it is brought to the bucket at the end.

    An error leaves nothing there. The folder's files go in the order in which they were last
    written, each whole.

    Args:
        url: of a file or folder that is to be written.
        name: of the flag or key, for messages.

    Raises:
        ValueError: at the start, the place cannot be written to.
        BucketAway: at the end.
    """
    objects.check_place(url, name, writes=True)
    folder = scratch() / "written" / uuid.uuid4().hex[:12]
    path = folder / url.rstrip("/").rpartition("/")[2]
    folder.mkdir(parents=True)
    try:
        yield path
        if path.is_dir():
            SyncedFolder(path, url).push()
        elif path.exists():
            objects.upload(url, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
