"""Stages of an experiment: commands of this package, each done once.

A stage that ended well leaves a record, `DIR/stages/NAME.json`, and is not run again. Started again
after whatever ended it, an experiment goes on with the first stage without one; training and
evaluation themselves go on where they were.

On a cluster every process runs the same stages. What is done is read once, before the first: no
stage ends before all processes have come to it, so all of them read the same.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr1_jax.exit_codes import FINAL, ExitCode
from sr1_jax.paths import write_whole
from sr1_jax.terminal import one_line

_RECORDS, _LOGS, _CONFIGS = "stages", "logs", "configs"
_SHOWN_LINES = 12
_POLL_SECONDS = 0.1
# How long a stage that is told to end may take to save.
_LAST_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command of this package.

    Attributes:
        name: unique in the experiment; part of file names.
        module: below sr1_jax, such as train.
        flags: of the command.
        config: text of the file of settings that the stage gets as --config.
        group: of stages that need each other; others may run at the same time.
    """

    name: str
    module: str
    flags: tuple[str, ...]
    config: str
    group: str = ""

    def command(self, folder: Path) -> list[str]:
        """The command line in an experiment's folder."""
        return self.command_with(self.config_path(folder), sys.executable)

    def command_with(self, config: Path, python: str) -> list[str]:
        """The command line with a file of settings and an interpreter."""
        return [python, "-m", f"sr1_jax.{self.module}", f"--config={config}", *self.flags]

    def config_path(self, folder: Path) -> Path:
        """Where its settings are written."""
        return folder / _CONFIGS / f"{self.name}.py"

    def log_path(self, folder: Path) -> Path:
        """Where its output goes."""
        return folder / _LOGS / f"{self.name}.log"

    def record_path(self, folder: Path) -> Path:
        """Where it is noted that it was done."""
        return folder / _RECORDS / f"{self.name}.json"

    def says(self) -> dict[str, Any]:
        """What has to be the same for it to count as done."""
        return {"module": self.module, "flags": list(self.flags), "config": self.config}


class StagesFailedError(RuntimeError):
    """Stages of an experiment failed.

    Args:
        codes: that they ended with, by name.

    Attributes:
        exit_code: that the experiment ends with: the first that will not do if given again, or
            else, where all may be given again, that of transient trouble.
    """

    def __init__(self, codes: Mapping[str, int]):
        super().__init__(
            f"{', '.join(codes)} failed; the ends of their logs are above. Mend it and start again "
            "with the same command: what is done is not done again."
        )
        final = (code for code in codes.values() if code in FINAL)
        self.exit_code = next(final, ExitCode.TRANSIENT)


def run_stages(
    stages: Sequence[Stage], folder: Path, *, cluster_flags: Sequence[str] = (), jobs: int = 1
) -> None:
    """Runs the stages that are not done yet: those of a group in their order, groups in turn.

    Args:
        stages: in an order in which each comes after those of its group that it needs.
        folder: of the experiment.
        cluster_flags: added to each command; see `cluster.define_flags`.
        jobs: groups under way at a time, each with its share of this process's cores.

    Raises:
        ValueError: a stage was done here with other settings, found before anything is run.
        StagesFailedError: stages failed; says how, and where their output is. The stages that come
            after one in its group are not run, other groups are.
        InterruptedError: SIGTERM came, and what was under way has ended.
    """
    pending: dict[str, collections.deque[Stage]] = {}
    for stage in stages:
        if not _is_done(stage, folder):
            pending.setdefault(stage.group, collections.deque()).append(stage)
    left = sum(map(len, pending.values()))
    print(f"{len(stages) - left} of {len(stages)} stages are done.", flush=True)
    _Runner(stages, folder, cluster_flags, _shares_of_cores(jobs)).run(pending)


class _Runner:
    """Stages under way.

    Args:
        stages: all of the experiment.
        folder: of the experiment.
        flags: added to each command.
        shares: cores of each job; None: all.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        folder: Path,
        flags: Sequence[str],
        shares: Sequence[set[int] | None],
    ):
        self._places = {stage.name: number for number, stage in enumerate(stages, start=1)}
        self._folder, self._flags, self._shares = folder, flags, shares
        self._running: dict[int, _Running] = {}
        self._told = False
        self._failed: dict[str, int] = {}

    def run(self, pending: dict[str, collections.deque[Stage]]) -> None:
        """Runs what is pending, by group; signals that end this process end the stages first."""
        handlers = {n: signal.signal(n, self._hand_on) for n in (signal.SIGTERM, signal.SIGINT)}
        waiting = collections.deque(pending.values())
        try:
            while waiting or self._running:
                for job in range(len(self._shares)):
                    if job not in self._running and waiting and not self._told:
                        self._start(job, waiting.popleft())
                time.sleep(_POLL_SECONDS)
                for job, running in list(self._running.items()):
                    if running.child.poll() is not None:
                        del self._running[job]
                        self._end(job, running)
                if self._told and not self._running:
                    raise InterruptedError(
                        "Told to end, and what was under way has ended. Start again with the same "
                        "command to go on."
                    )
            if self._failed:
                raise StagesFailedError(self._failed)
        finally:
            self._stop_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start(self, job: int, group: collections.deque[Stage]) -> None:
        """Starts the next stage of a group."""
        stage = group.popleft()
        self._say(stage, "…")
        # Only now: whoever reads it reads what the stage is run with.
        write_whole(stage.config_path(self._folder), stage.config)
        log = stage.log_path(self._folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            before = file.tell()
            child = subprocess.Popen(
                [*stage.command(self._folder), *self._flags],
                stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a terminal's Ctrl-C reaches it once, by way of us
            )  # fmt: skip
        if self._shares[job] is not None:
            os.sched_setaffinity(child.pid, self._shares[job])
        self._running[job] = _Running(stage, group, child, before, time.perf_counter())

    def _end(self, job: int, running: _Running) -> None:
        """Notes what came of a stage, and starts the next of its group."""
        stage, seconds = running.stage, time.perf_counter() - running.began
        if self._told:
            return  # it may have saved and gone: it is asked again
        if code := running.child.returncode:
            log = stage.log_path(self._folder)
            text = log.read_bytes()[running.before :].decode("utf-8", errors="replace")
            for line in text.splitlines()[-_SHOWN_LINES:]:
                print(f"  {one_line(line)}", file=sys.stderr)
            print(f"{stage.name} failed with exit code {code}: {log}", file=sys.stderr, flush=True)
            self._failed[stage.name] = code
            return
        record = json.dumps(stage.says() | {"seconds": seconds}, indent=1)
        write_whole(stage.record_path(self._folder), record)
        self._say(stage, f"{seconds:.0f} s")
        if running.group:
            self._start(job, running.group)

    def _say(self, stage: Stage, what: str) -> None:
        width = len(str(len(self._places)))
        place = f"{self._places[stage.name]:>{width}}/{len(self._places)}"
        print(f"{place} {stage.name} {what}", flush=True)

    def _hand_on(self, number: int, frame: Any) -> None:
        self._told = True
        for running in self._running.values():
            running.child.send_signal(number)

    def _stop_all(self) -> None:
        """Ends what is still under way after a failure: told first, so that it saves."""
        for running in self._running.values():
            running.child.terminate()
        for running in self._running.values():
            try:
                running.child.wait(_LAST_SECONDS)
            except subprocess.TimeoutExpired:
                running.child.kill()
                running.child.wait()


@dataclasses.dataclass
class _Running:
    """A stage under way, the rest of its group, and where its output begins in the log."""

    stage: Stage
    group: collections.deque[Stage]
    child: subprocess.Popen
    before: int
    began: float


def _shares_of_cores(jobs: int) -> list[set[int] | None]:
    """The cores of each job; None with a single one, or where there are fewer cores than jobs."""
    cores = sorted(os.sched_getaffinity(0))
    if jobs == 1 or len(cores) < jobs:
        return [None] * jobs
    return [set(cores[job::jobs]) for job in range(jobs)]


def print_commands(stages: Sequence[Stage], folder: Path) -> None:
    """Prints the commands of all stages, those that are done marked.

    Their settings are written to a folder of their own, `folder`/dry_run: those of an experiment
    that is under way stay as they are.
    """
    done = [_is_done(stage, folder) for stage in stages]
    for stage, is_done in zip(stages, done):
        path = folder / "dry_run" / f"{stage.name}.py"
        write_whole(path, stage.config)
        command = shlex.join(stage.command_with(path, "python"))
        print(("# done: " if is_done else "") + command)


def _is_done(stage: Stage, folder: Path) -> bool:
    path = stage.record_path(folder)
    if not path.is_file():
        return False
    try:
        record: Mapping[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it to run the stage again."
        ) from error
    for key, value in stage.says().items():
        if record.get(key) != value:
            raise ValueError(
                f"{path}: {stage.name} was done with other {key}: use the old settings or another "
                "--workdir, or remove that file to run the stage again."
            )
    return True


def cluster_flags(argv: Sequence[str]) -> list[str]:
    """Those of the flags of `cluster.define_flags` that a command line has."""
    names = ("distributed", "coordinator", "processes", "process", "join_seconds")
    found = []
    left = list(argv[1:])
    while left:
        argument = left.pop(0)
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in names:
            found.append(argument)
            if not equals and name != "distributed":
                found.append(left.pop(0))
    return found


def seeds_of(given: Sequence[str]) -> tuple[int, ...]:
    """The seeds of a flag.

    Raises:
        ValueError: none, one twice, or one that is no whole number from 0 on.
    """
    if not given or not all(seed.isdecimal() for seed in given):
        raise ValueError(f"--seeds={','.join(given)}: seeds are whole numbers, such as 0,1,2.")
    seeds = tuple(map(int, given))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds={','.join(given)} names a seed twice.")
    return seeds
