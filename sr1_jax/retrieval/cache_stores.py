"""Where a cache keeps results: in the memory of one process, or in a file that the processes of a
host share. Both hold bytes by key, and drop what was used least recently when they are full."""

from __future__ import annotations

import collections
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

# When a store is full it drops entries until it holds this share of what it may.
_KEPT_SHARE = 0.9
# An entry's last use is noted again after so long: reading need not write each time.
_TOUCH_SECONDS = 60
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS results_by_use ON results (used);
CREATE TABLE IF NOT EXISTS held (bytes INTEGER NOT NULL);
INSERT INTO held SELECT 0 WHERE NOT EXISTS (SELECT * FROM held);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON results
    BEGIN UPDATE held SET bytes = bytes + length(NEW.key) + length(NEW.value); END;
CREATE TRIGGER IF NOT EXISTS dropped AFTER DELETE ON results
    BEGIN UPDATE held SET bytes = bytes - length(OLD.key) - length(OLD.value); END;
"""


class Store(Protocol):
    """Bytes by key, used from several threads at once."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        ...

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Adds values."""
        ...


class MemoryStore:
    """Holds at most `most_bytes` of keys and values in this process."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._values: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See `Store`."""
        with self._lock:
            found = {key: self._values[key] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """See `Store`."""
        with self._lock:
            for key, value in values.items():
                self._drop(key)
                self._values[key] = value
                self.bytes += len(key) + len(value)
            while self.bytes > self._most_bytes:
                self._drop(next(iter(self._values)))

    def _drop(self, key: bytes) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self.bytes -= len(key) + len(value)


class DiskStore:
    """An SQLite file of at most about `most_bytes`; all processes of a host may use it at once.

    SQLite's write-ahead log lets readers go on beside one writer; it needs a local file system, not
    one of the network. A crash of the machine may lose the last entries, never the file.

    Args:
        path: of the file; made with its folder if need be.
        most_bytes: of keys and values together.
        wait_seconds: that a writer waits for another.

    Raises:
        ValueError: the file is something else, or damaged.
        OSError: the folder cannot be made, or not be written to.
    """

    def __init__(self, path: Path, most_bytes: int, *, wait_seconds: float = 5.0):
        self._path, self._most_bytes, self._wait_seconds = path, most_bytes, wait_seconds
        # Calls come from ever new threads: connections are handed on, not made for each.
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create()
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: no cache can be kept there ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{path} is no cache of results, or a damaged one ({error}): delete it, or name "
                "another folder."
            ) from error

    def _create(self) -> None:
        until = time.monotonic() + self._wait_seconds
        while True:
            try:
                with self._connection() as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                return
            except sqlite3.OperationalError as error:
                # Of several processes that make the file only one may; SQLite does not always wait.
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    @property
    def bytes(self) -> int:
        """Of all keys and values."""
        with self._connection() as connection:
            return connection.execute("SELECT bytes FROM held").fetchone()[0]

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See `Store`.

        Raises:
            sqlite3.Error: the file cannot be read.
        """
        now, found, stale = int(time.time()), {}, []
        with self._connection() as connection:
            for key in keys:
                row = connection.execute(
                    "SELECT value, used FROM results WHERE key = ?", (key,)
                ).fetchone()
                if row is not None:
                    found[key] = row[0]
                    if now - row[1] >= _TOUCH_SECONDS:
                        stale.append((now, key))
            if stale:
                with _writing(connection):
                    connection.executemany("UPDATE results SET used = ? WHERE key = ?", stale)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """See `Store`.

        Raises:
            sqlite3.Error: the file cannot be written, or another held it for too long.
        """
        now = int(time.time())
        rows = [(key, value, now) for key, value in values.items()]
        with self._connection() as connection, _writing(connection):
            # What another process has put meanwhile is the same.
            connection.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", rows)
            self._make_room(connection)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        (held,) = connection.execute("SELECT bytes FROM held").fetchone()
        if held <= self._most_bytes:
            return
        # The oldest, up to and with the one that makes enough room.
        connection.execute(
            """
            DELETE FROM results WHERE key IN (
                SELECT key FROM (
                    SELECT key, length(key) + length(value) AS own,
                           SUM(length(key) + length(value)) OVER (ORDER BY used, key) AS freed
                    FROM results
                ) WHERE freed - own < ?
            )
            """,
            (held - int(self._most_bytes * _KEPT_SHARE),),
        )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = sqlite3.connect(
                self._path,
                timeout=self._wait_seconds,
                isolation_level=None,  # transactions are begun where they are wanted
                check_same_thread=False,
            )
            connection.execute("PRAGMA synchronous = NORMAL")
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    # At once, not when the first row is written: only so does a writer wait for another.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
