"""Files that one process at a time may use, and one run at a time in a workdir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sr1_jax.terminal import one_line

LOCK_FILE = ".lock"
# What file systems say that know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(file: IO) -> OSError | None:
    """Locks an open file until it is closed or the process ends, however it does.

    Returns:
        None; or the error of a file system that knows no locks, where there is none now.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error
    return None


@contextlib.contextmanager
def lock_workdir(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a workdir while the context is open.

    The kernel holds the lock for the process and drops it when the process ends, however it does;
    the file stays and means nothing by itself. Of a cluster, the first process alone takes it.

    Args:
        folder: made if need be.

    Raises:
        ValueError: another run holds it; names its host and process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    # Not "w": that would wipe out who holds it.
    with open(path, "a+", encoding="utf-8") as file:
        try:
            unknown = try_lock(file)
        except BlockingIOError as error:
            file.seek(0)
            holder = one_line(file.read()) or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}: two runs in one workdir would overwrite each "
                "other's files. Wait for it to end, stop it, or give another --workdir."
            ) from error
        if unknown is not None:
            print(
                f"{path}: this file system knows no locks ({unknown.strerror}); make sure that no "
                "other run uses the workdir.",
                file=sys.stderr,
                flush=True,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
        yield
