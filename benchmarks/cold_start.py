"""How soon a run that is started again reaches its first update, with and without kept programs.

    python benchmarks/cold_start.py --config=configs/demo.py [--rounds=3] [--config.key=value …]

A first start makes the policy and saves step 1. Then the same run is started again and again, in
turns with the programs that it kept and with none, each time until the row of its next step is
written; then it is told to end, and saves. Printed are the seconds from the start of the process to
that row, those that its processor worked for it, which tell more on a busy machine, and the ratios
of the medians. `first` is the first start, warm start and scores before training included.

On two quiet cores, configs/demo.py with a base policy that is ready, medians of two: the first
start 36.0 s, a restart without programs 29.9, with them 11.2.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sr1_jax.exit_codes import ExitCode

_MANY_STEPS = 1_000_000


def seconds_to_step(workdir: Path, flags: Sequence[str], step: int) -> tuple[float, float]:
    """Starts a run, and ends it when a step is done.

    Args:
        workdir: of the run.
        flags: of sr1_jax.train.
        step: whose row is waited for.

    Returns:
        From the start of the process to the row, and what its processors worked for it until then.
    """
    command = [sys.executable, "-m", "sr1_jax.train", f"--workdir={workdir}", *flags]
    metrics = workdir / "metrics.jsonl"
    began = time.perf_counter()
    with open(workdir / "log.txt", "ab") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
        while not metrics.exists() or metrics.read_text().count("\n") < step:
            if running.poll() is not None:
                raise SystemExit((workdir / "log.txt").read_text()[-2000:])
            time.sleep(0.02)
        seconds = time.perf_counter() - began, processor_seconds(running.pid)
        running.send_signal(signal.SIGTERM)
        code = running.wait()
    if code != ExitCode.TERMINATED:
        raise SystemExit(f"The run ended with code {code}: see {workdir / 'log.txt'}.")
    return seconds


def processor_seconds(process: int) -> float:
    """Of all threads of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, others = parser.parse_known_args()
    flags = [f"--config={arguments.config}", f"--config.steps={_MANY_STEPS}", *others]
    flags += ["--config.checkpoint.every=1", "--config.evaluation.every=0"]
    found: dict[str, list[tuple[float, float]]] = {"kept programs": [], "no programs": []}
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        print(f"first: {told(seconds_to_step(workdir, flags, 1))}", flush=True)
        rows = (workdir / "metrics.jsonl").read_text().count("\n")
        # The first restart compiles what only restarts need; it is of neither side.
        for number in range(1 + 2 * arguments.rounds):
            kept = number % 2 == 0
            more = [] if kept else ["--config.compilation_cache="]
            seconds = seconds_to_step(workdir, [*flags, *more], rows + 1)
            rows = (workdir / "metrics.jsonl").read_text().count("\n")
            if number:
                found["kept programs" if kept else "no programs"].append(seconds)
    medians = {}
    for side, pairs in found.items():
        medians[side] = tuple(map(statistics.median, zip(*pairs)))
        print(f"{side}: median {told(medians[side])}; {'; '.join(map(told, pairs))}")
    kept, none = medians.values()
    print(f"ratios {kept[0] / none[0]:.2f} and {kept[1] / none[1]:.2f}")


def told(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.1f} s ({pair[1]:.1f} s of processors)"


if __name__ == "__main__":
    main()
