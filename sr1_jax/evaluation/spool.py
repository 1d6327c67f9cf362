"""Trajectories of an evaluation under way, in a file from the moment that each is over.

An evaluation that was killed and is started again takes them up and runs only the others. A
trajectory depends on the seed, its question and its number alone, so the result is that of an
unbroken evaluation. Each process appends to a file of its own, NAME.partial_PROCESS.jsonl; all read
what any has left, whatever their number was. The first line says what the answers depend on: what
was answered under other circumstances is not taken up.

A line is in the operating system's hands when `add` returns: what kills the process does not lose
it. A line that was cut short is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.plain_trajectory import from_plain, to_plain
from sr1_jax.lock import try_lock


class Kept(NamedTuple):
    """What earlier starts of an evaluation left.

    Attributes:
        trajectories: by (question id, sample).
        seconds: that they took together.
        problems: what was not taken up, and why, in sentences.
    """

    trajectories: dict[tuple[str, int], Trajectory]
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


def read_kept(folder: Path, name: str, facts: Mapping[str, Any]) -> Kept:
    """What earlier starts of an evaluation left in all files that can be seen from here.

    Args:
        folder: of results.
        name: of the result.
        facts: JSON-able, that the answers depend on.
    """
    found: dict[tuple[str, int], Trajectory] = {}
    seconds, problems = 0.0, []
    for path in _partial_files(folder, name):
        lines = path.read_bytes().split(b"\n")
        # What follows the last line feed was cut short.
        rows = [(number, line) for number, line in enumerate(lines[:-1], start=1)]
        if not rows:
            continue
        before = _json(rows[0][1])
        if before is None or before.get("facts") != _plain(facts):
            changed = _changed((before or {}).get("facts"), _plain(facts))
            problems.append(
                f"{path} has {len(rows) - 1} answers that were given with other {changed}: they "
                "are not taken up."
            )
            continue
        for number, line in rows[1:]:
            row = _json(line)
            try:
                trajectory = from_plain(row["trajectory"])
                seconds = max(seconds, float(row["seconds"]))
            except (TypeError, KeyError, ValueError):
                problems.append(f"{path}:{number} is damaged: that question is asked again.")
                continue
            found[trajectory.question_id, trajectory.sample] = trajectory
    return Kept(found, seconds, tuple(problems))


class Spool(contextlib.AbstractContextManager):
    """The file of one process.

    Args:
        folder: of results, made if need be.
        name: of the result.
        facts: JSON-able, that the answers depend on.
        process: number of this process.

    Raises:
        ValueError: another evaluation writes the same file.
    """

    def __init__(self, folder: Path, name: str, facts: Mapping[str, Any], process: int):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.partial_{process}.jsonl"
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 closed in __exit__
        try:
            _lock(self._file, path)
            self._begin({"facts": _plain(facts)})
        except BaseException:
            self._file.close()
            raise

    def add(self, trajectory: Trajectory, seconds: float) -> None:
        """Appends a trajectory.

        Args:
            trajectory: that is over.
            seconds: of the evaluation so far, earlier starts included.

        Raises:
            OSError: it cannot be written.
        """
        self._write({"seconds": seconds, "trajectory": to_plain(trajectory)})

    def __exit__(self, *_) -> None:
        self._file.close()

    def _begin(self, header: Mapping[str, Any]) -> None:
        """Cuts off a line that was cut short, or all lines where the first is another."""
        self._file.seek(0)
        content = self._file.read()
        first, whole, _ = content.partition(b"\n")
        if whole and _json(first) == header:
            os.ftruncate(self._file.fileno(), content.rfind(b"\n") + 1)
        else:
            os.ftruncate(self._file.fileno(), 0)
            self._write(header)

    def _write(self, row: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(row).encode("ascii") + b"\n")
        while data:
            data = data[self._file.write(data) :]


def delete_partial(folder: Path, name: str) -> None:
    """Deletes all files of an evaluation under way: its result is written."""
    for path in _partial_files(folder, name):
        path.unlink(missing_ok=True)


def _partial_files(folder: Path, name: str) -> list[Path]:
    """The files of all processes. Names may hold what has a meaning in patterns."""
    if not folder.is_dir():
        return []
    start = f"{name}.partial_"
    files = (path for path in folder.iterdir() if path.name.startswith(start))
    return sorted(path for path in files if path.name[len(start) :].split(".")[0].isdigit())


def _lock(file: Any, path: Path) -> None:
    try:
        try_lock(file)
    except BlockingIOError as error:
        raise ValueError(
            f"{path} is written by another process: the same evaluation is under way already. Wait "
            "for it to end, or stop it."
        ) from error


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(facts))


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _changed(before: Any, now: Mapping[str, Any]) -> str:
    """Names of the facts that differ."""
    return ", ".join(_differences(before, now)) if isinstance(before, dict) else "facts"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        elif old != new:
            yield key
