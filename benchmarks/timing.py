"""What the benchmarks share: sides that run in turn, and sides with an interpreter of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax


def compare(sides: dict[str, Callable], runs: int, title: str = "") -> None:
    """Calls the sides in turn; prints their medians, and of each how many times as long as ours,
    the last one, it takes."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 2):
        for name, call in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if run >= 2:  # compilation and warm-up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    *_, ours = medians.values()
    for name, median in medians.items():
        print(f"{title}{name}: median {median * 1e3:.2f} ms of {runs}, ratio {median / ours:.2f}")


def alternate(sides: dict[str, Callable[[], int]], runs: int, tokens: str, **units: float) -> None:
    """Runs the sides in turn, ours first, all of them compiled before; prints what each run took
    under which load, and medians.

    Args:
        sides: by name; each returns with how many tokens it has dealt, all with as many.
        runs: of each side.
        tokens: what kind of tokens that are.
        units: other things that a run deals with, and how many of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    dealt = {}
    for _ in range(runs):
        for name, run in sides.items():
            load, began = os.getloadavg()[0], time.perf_counter()
            dealt[name] = run()
            took = time.perf_counter() - began
            seconds[name].append(took)
            print(f"{name}: {took:.2f} s, load {load:.1f}", flush=True)
    assert len(set(dealt.values())) == 1, dealt
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(medians.values()))
    for name, median in medians.items():
        rates = [f"{count / median:.3f} {unit}/s" for unit, count in units.items()]
        rates.append(f"{dealt[name] / median:.0f} {tokens} tokens/s")
        print(
            f"{name}: median {median:.2f} s of {runs}, {', '.join(rates)}, "
            f"{median / ours:.2f} times as long as ours"
        )


class Worker:
    """A script beside this one under another interpreter, which waits while others run.

    The script gets the path of a JSON file with the request as its argument. For each line that
    it reads it does what the line names, and prints a line "answer " with a JSON object.

    Args:
        python: interpreter.
        script: name of the file.
        request: what it is to do, JSON-able.
        environment: variables that it has besides.
    """

    def __init__(
        self,
        python: str,
        script: str,
        request: dict[str, Any],
        environment: Mapping[str, str] = types.MappingProxyType({}),
    ):
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "request.json"
        file.write_text(json.dumps(request))
        self._script = script
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name(script), file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip

    def ask(self, what: str = "go") -> dict[str, Any]:
        """The answer to a line.

        Raises:
            RuntimeError: the script has ended.
        """
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("answer "):
            if not line:
                raise RuntimeError(f"benchmarks/{self._script} ended; see its error above.")
        return json.loads(line.removeprefix("answer "))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
