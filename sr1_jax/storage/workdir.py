"""The folder of a run, where that is in a bucket: worked on here, brought there again and again.

Programs read and write files in a local folder that stands for the one in the bucket. What changes
is brought there on a clock, before each checkpoint is committed, and at the end; what a run finds
there when it starts is brought here first. Checkpoints alone never come here: they are written and
read where they are.
"""

from __future__ import annotations

import contextlib
import fnmatch
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from sr1_jax.storage import objects
from sr1_jax.storage.lease import Lease, LeaseLost
from sr1_jax.storage.objects import BucketAway, is_bucket
from sr1_jax.storage.places import stand_in
from sr1_jax.storage.synced import SyncedFolder

# Names the folder in the bucket, in the local one that stands for it.
_ORIGIN = ".origin"
# Folders of checkpoints below a workdir.
CHECKPOINTS = ("checkpoints", "supervised_checkpoints")
PUSH_SECONDS = 60.0
# Files that come and go, so that they go in the bucket too; all others stay there.
_PASSING = ("*.partial_*", "*/under_way.*")


def place_of(folder: str | Path | epath.Path) -> Path | epath.Path:
    """Where a folder really is: an address as a path that Orbax takes, and a local folder that
    stands for one in a bucket as that one."""
    if is_bucket(folder):
        objects.prepare()
        return epath.Path(str(folder))
    origin = Path(folder) / _ORIGIN
    if not origin.is_file():
        return Path(folder)
    objects.prepare()
    return epath.Path(origin.read_text())


def push_now(folder: Path) -> None:
    """Brings to the bucket what has changed in an open workdir; of others it knows nothing.

    Raises:
        BucketAway: the bucket does not answer.
        LeaseLost: another run has taken over.
    """
    if (workdir := _open.get(folder)) is not None:
        workdir.push()


def check_ours(folder: Path) -> None:
    """Returns where an open workdir is still held by this run; of others it knows nothing.

    Raises:
        BucketAway: it cannot be found out.
        LeaseLost: another run has taken over.
    """
    if (workdir := _open.get(folder)) is not None:
        workdir.check_ours()


# Workdirs that this process keeps up to date, by their local folders.
_open: dict[Path, BucketWorkdir] = {}


class BucketWorkdir:
    """Keeps a workdir in a bucket up to date.

    Args:
        url: of the workdir.
        purpose: programs of different purposes have folders of their own here.
        brings: patterns of the files that this process brings to the bucket; none: nothing.
        leaves: patterns of the files that are not wanted here.
        lease: that has to be held whenever something is brought there; None: of another process.
    """

    def __init__(
        self,
        url: str,
        purpose: str,
        *,
        brings: Sequence[str] = ("*",),
        leaves: Sequence[str] = (),
        lease: Lease | None = None,
    ):
        self.url, self._lease = url.rstrip("/"), lease
        self.folder = stand_in(self.url, purpose)
        self._brings, self._leaves = brings, leaves
        self._synced = SyncedFolder(self.folder, self.url)
        self._pushing, self._over = threading.Lock(), threading.Event()

    def fetch(self) -> list[str]:
        """Brings here what the bucket has.

        Returns:
            Names of its files.

        Raises:
            ValueError: there is no such bucket.
            BucketAway: it does not answer.
        """
        found = self._synced.fetch(
            lambda name: not _matches(name, self._leaves) and self._is_ours(name)
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _ORIGIN).write_text(self.url)
        return found

    def check_ours(self) -> None:
        """Raises what `push` does where another run has taken over, or it cannot be found out."""
        if self._lease is not None:
            self._lease.check()

    def push(self) -> None:
        """Brings to the bucket what has changed.

        Raises:
            BucketAway: it does not answer.
            LeaseLost: another run has taken over.
        """
        with self._pushing:
            self.check_ours()
            self._synced.push(
                lambda name: _matches(name, self._brings) and self._is_ours(name),
                lambda name: _matches(name, _PASSING),
            )

    @contextlib.contextmanager
    def pushed_on_a_clock(self, seconds: float = PUSH_SECONDS) -> Iterator[None]:
        """While entered, pushes every so many seconds, and in the end, after an error too."""
        thread = threading.Thread(target=self._keep, args=(seconds,), name="upload", daemon=True)
        thread.start()
        _open[self.folder] = self
        try:
            yield
        except BaseException:
            self._stop(thread)
            with contextlib.suppress(OSError):  # the error before it tells more
                self.push()
            raise
        self._stop(thread)
        self.push()

    def _stop(self, thread: threading.Thread) -> None:
        _open.pop(self.folder, None)
        self._over.set()
        thread.join()

    def _keep(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            try:
                self.push()
            except LeaseLost:  # the next checkpoint tells, or the end
                return
            except BucketAway as error:  # the next time brings all; a checkpoint would wait for it
                print(f"{error} Trying again.", file=sys.stderr, flush=True)

    @staticmethod
    def _is_ours(name: str) -> bool:
        return name.partition("/")[0] not in CHECKPOINTS and not name.startswith(".")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
