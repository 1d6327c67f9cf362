"""The workdir of a program, wherever it is."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax

from sr1_jax.agreement import lead_on_file_system, wait_for_all
from sr1_jax.cluster import is_first
from sr1_jax.paths import local_path
from sr1_jax.storage import is_bucket, objects
from sr1_jax.storage.lease import Lease
from sr1_jax.storage.workdir import BucketWorkdir

# What each process writes for itself, on whichever host: the first process brings all it sees, one
# of each other host these.
_OF_EACH = ("*.partial_*", "stacks-*.txt", "profile/*", "logs/*")
# What is written once and only read by people: a run needs none of it, and finds new names.
_RECORDS = ("trajectories/*", "tensorboard/*", "profile/*", "logs/*", "undone/*")


@contextlib.contextmanager
def training_workdir(text: str) -> Iterator[Path]:
    """The workdir of a run, which no other run may enter meanwhile.

    Args:
        text: what --workdir says.

    Yields:
        A local folder; see `storage.workdir` for one in a bucket. All processes get it together.

    Raises:
        ValueError: it cannot be used, or another run is at work in it.
        BucketAway: the bucket does not answer.
    """
    if not is_bucket(text):
        yield local_path(text, "--workdir")
        return
    with _open(text, purpose="run", leased=True, leaves=_RECORDS) as folder:
        yield folder


@contextlib.contextmanager
def workdir_of_run(text: str, program: str, *, writes: bool = False) -> Iterator[Path]:
    """The workdir of a run, for a program that makes none.

    Args:
        text: what --workdir says.
        program: which, so that several do not meet.
        writes: whether it leaves results there.

    Yields, Raises: as `training_workdir`.
    """
    if not is_bucket(text):
        yield local_path(text, "--workdir")
        return
    with _open(text, purpose=program, leased=False, leaves=_RECORDS, writes=writes) as folder:
        yield folder


def run_or_result(text: str) -> Path:
    """The workdir of a run, or a file of results in its folder eval, to be read.

    Args:
        text: what was given.

    Raises:
        ValueError: as `other_workdir`.
    """
    if not is_bucket(text):
        return local_path(text, "workdir")
    if text.endswith(".json"):
        workdir, folder, name = text.rsplit("/", 2)
        return other_workdir(workdir, "workdir") / folder / name
    return other_workdir(text, "workdir")


@functools.cache
def other_workdir(text: str, name: str = "base.workdir") -> Path:
    """The workdir of another run, which this program reads and never writes.

    Args:
        text: what was given.
        name: of the flag or key, for messages.

    Raises:
        ValueError: there is no such folder in the bucket, or it may not be read.
    """
    if not is_bucket(text):
        return local_path(text, name)
    objects.check_place(text, name, writes=False)
    workdir = BucketWorkdir(text, "read", leaves=_RECORDS)
    if not workdir.fetch():
        raise ValueError(f"{name}={text}: there is no such folder in the bucket.")
    return workdir.folder


@contextlib.contextmanager
def _open(
    url: str, *, purpose: str, leased: bool, leaves: tuple[str, ...], writes: bool = True
) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        objects.check_place(url, "--workdir", writes=writes and is_first())
        lease = None
        if leased and is_first():
            lease = stack.enter_context(Lease(url, "--workdir"))
        wait_for_all()  # until the first has the lease: before, another run may still write
        brings = ("*",) if is_first() else _OF_EACH
        workdir = BucketWorkdir(url, purpose, brings=brings, leaves=leaves, lease=lease)
        workdir.fetch()
        if lead_on_file_system(workdir.folder) == jax.process_index() and writes:
            stack.enter_context(workdir.pushed_on_a_clock())
        yield workdir.folder
