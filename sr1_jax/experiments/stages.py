"""Stages of an experiment: commands of this package one after the other, each done once.

A stage that ended well leaves a record, `DIR/stages/NAME.json`, and is not run again. Started again
after whatever ended it, an experiment goes on with the first stage without one; training and
evaluation themselves go on where they were.

On a cluster every process runs the same stages. What is done is read once, before the first: no
stage ends before all processes have come to it, so all of them read the same.
"""

from __future__ import annotations

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

from sr1_jax.terminal import one_line

_RECORDS, _LOGS, _CONFIGS = "stages", "logs", "configs"
_SHOWN_LINES = 12


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command of this package.

    Attributes:
        name: unique in the experiment; part of file names.
        module: below sr1_jax, such as train.
        flags: of the command.
        config: text of the file of settings that the stage gets as --config.
    """

    name: str
    module: str
    flags: tuple[str, ...]
    config: str

    def command(self, folder: Path) -> list[str]:
        """The whole command line.

        Args:
            folder: of the experiment.
        """
        config = f"--config={self.config_path(folder)}"
        return [sys.executable, "-m", f"sr1_jax.{self.module}", config, *self.flags]

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


def run_stages(stages: Sequence[Stage], folder: Path, *, cluster_flags: Sequence[str] = ()) -> None:
    """Runs the stages that are not done yet, one after the other.

    Args:
        stages: in an order in which each comes after those it needs.
        folder: of the experiment.
        cluster_flags: added to each command; see `cluster.define_flags`.

    Raises:
        ValueError: a stage was done here with other settings, found before anything is run.
        RuntimeError: a stage failed; says how, and where its output is.
        InterruptedError: SIGTERM came, and the stage that was under way has ended.
    """
    pending = [stage for stage in stages if not _is_done(stage, folder)]
    for stage in pending:
        _write(stage.config_path(folder), stage.config)
    width = len(str(len(stages)))
    print(f"{len(stages) - len(pending)} of {len(stages)} stages are done.", flush=True)
    for stage in pending:
        number = stages.index(stage) + 1
        print(f"{number:>{width}}/{len(stages)} {stage.name} …", flush=True)
        began = time.perf_counter()
        _run(stage, folder, cluster_flags)
        seconds = time.perf_counter() - began
        _write(stage.record_path(folder), json.dumps(stage.says() | {"seconds": seconds}, indent=1))
        print(f"{number:>{width}}/{len(stages)} {stage.name}: {seconds:.0f} s", flush=True)


def print_commands(stages: Sequence[Stage], folder: Path) -> None:
    """Prints the commands of all stages, those that are done marked, and writes their settings."""
    for stage in stages:
        _write(stage.config_path(folder), stage.config)
        done = "# done: " if _is_done(stage, folder) else ""
        print(done + shlex.join(["python", *stage.command(folder)[1:]]))


def seconds_of(stage: Stage, folder: Path) -> float | None:
    """How long a stage took; None while it is not done."""
    path = stage.record_path(folder)
    return json.loads(path.read_text())["seconds"] if path.is_file() else None


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


def _run(stage: Stage, folder: Path, cluster_flags: Sequence[str]) -> None:
    """Runs a stage to its end; signals that end this process end it first."""
    log = stage.log_path(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    told: list[int] = []
    with open(log, "a", encoding="utf-8") as file:
        before = file.tell()
        child = subprocess.Popen(
            [*stage.command(folder), *cluster_flags],
            stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

        def hand_on(number: int, frame: Any) -> None:
            told.append(number)
            child.send_signal(number)

        handlers = {n: signal.signal(n, hand_on) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = child.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if child.poll() is None:
                child.kill()
                child.wait()
    if told:
        raise InterruptedError(
            f"Told to end; {stage.name} has ended. Start again with the same command to go on."
        )
    if code:
        lines = log.read_bytes()[before:].decode("utf-8", errors="replace").splitlines()
        for line in lines[-_SHOWN_LINES:]:
            print(f"  {one_line(line)}", file=sys.stderr)
        raise RuntimeError(
            f"{stage.name} failed with exit code {code}; above is the end of {log}. Mend it and "
            "start again with the same command: what is done is not done again."
        )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
