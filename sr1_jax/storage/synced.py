"""A local folder and a folder in a bucket that are brought to hold the same files.

What is known of each file stands in a record beside the local folder: of which generation the
object is that it equals, and the file's size and time of change at that moment. So each side shows
whether it has changed since. Objects and files alike are there whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from sr1_jax.storage import objects
from sr1_jax.storage.objects import Stored

_THREADS = 8


class _Known(NamedTuple):
    """A file that equals an object, or did before it was written to.

    Attributes:
        stored: the object.
        size, changed: of the file then; bytes, nanoseconds.
    """

    stored: Stored
    size: int
    changed: int


class SyncedFolder:
    """A local folder and its like in a bucket.

    Files and folders that begin with a dot stay local. Processes of one host may fetch into the
    same folder; one of them may push.

    Args:
        folder: local.
        url: of the folder in the bucket, or of one object: then `folder` is its file.
    """

    def __init__(self, folder: Path, url: str):
        self.folder, self.url = folder, url.rstrip("/")
        self._record = folder.with_name(f".{folder.name}.known.json")

    def fetch(self, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
        """Brings here what has changed in the bucket, and deletes here what was deleted there.

        A file that was changed here alone stays as it is.

        Args:
            wanted: which files, by their names below the folder.

        Returns:
            Names of all files of the bucket that are wanted.

        Raises:
            FileNotFoundError: there is no such bucket.
            BucketAway: it does not answer.
            OSError: a file cannot be written.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            known = self._read()
            there = {name: o for name, o in objects.listing(self.url).items() if wanted(name)}
            stale = [name for name, stored in there.items() if self._stale(name, stored, known)]
            with ThreadPoolExecutor(_THREADS) as threads:
                coming = {name: threads.submit(self._download, name, there[name]) for name in stale}
            # What came is noted even where others did not: the next try need not bring it again.
            failures = []
            for name, one in coming.items():
                try:
                    known[name] = one.result()
                except FileNotFoundError:  # deleted since it was listed
                    del there[name]
                except OSError as error:
                    failures.append(error)
            for name in [name for name in known if wanted(name) and name not in there]:
                self._path(name).unlink(missing_ok=True)
                del known[name]
            self._write(known)
        if failures:
            raise failures[0]
        return sorted(there)

    def _stale(self, name: str, stored: Stored, known: dict[str, _Known]) -> bool:
        if name not in known or known[name].stored.generation != stored.generation:
            return True
        return not self._path(name).is_file()

    def _download(self, name: str, stored: Stored) -> _Known:
        stored = objects.download(objects.join(self.url, name), self._path(name), stored)
        state = self._path(name).stat()
        return _Known(stored, state.st_size, state.st_mtime_ns)

    def push(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        passing: Callable[[str], bool] = lambda name: False,
    ) -> int:
        """Brings to the bucket what has changed here.

        Files go in the order in which they were last written: one whose presence says that others
        are complete comes after them.

        Args:
            wanted: which files, by their names below the folder.
            passing: which of them are deleted there when they were deleted here. Others stay: who
                cleans up this host does not mean them.

        Returns:
            How many objects were written.

        Raises:
            BucketAway: the bucket does not answer.
        """
        known = self._read()
        changed = sorted(
            (state.st_mtime_ns, name)
            for name, state in self._local()
            if wanted(name) and not self._unchanged(known.get(name), state)
        )
        try:
            for _, name in changed:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    state = self._path(name).stat()
                    stored = objects.upload(objects.join(self.url, name), self._path(name))
                    known[name] = _Known(stored, state.st_size, state.st_mtime_ns)
            for name in [n for n in known if wanted(n) and passing(n)]:
                if self._path(name).is_file():
                    continue
                objects.delete(objects.join(self.url, name))
                del known[name]
        finally:
            self._write(known)
        return len(changed)

    def _path(self, name: str) -> Path:
        return self.folder / name if name else self.folder

    @staticmethod
    def _unchanged(known: _Known | None, state: os.stat_result) -> bool:
        return known is not None and (known.size, known.changed) == (
            state.st_size,
            state.st_mtime_ns,
        )

    def _local(self) -> Iterator[tuple[str, os.stat_result]]:
        """All files here, by name."""
        for where, folders, names in os.walk(self.folder):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            for name in names:
                path = Path(where, name)
                if not name.startswith(".") and not name.endswith(".tmp"):
                    with contextlib.suppress(FileNotFoundError):
                        yield path.relative_to(self.folder).as_posix(), path.stat()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """While another process of this host fetches, this one waits, and finds its files."""
        with open(self._record.with_suffix(".lock"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, _Known]:
        try:
            kept = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if kept.get("url") != self.url:
            return {}
        return {name: _Known(Stored(*of), *rest) for name, (of, *rest) in kept["files"].items()}

    def _write(self, known: dict[str, _Known]) -> None:
        temporary = self._record.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"url": self.url, "files": known}))
        temporary.replace(self._record)
