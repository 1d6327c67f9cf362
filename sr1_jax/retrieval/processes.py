"""Work in several Python processes.

Not multiprocessing: its processes are forks, which must not be made of a program that runs JAX, or
they run the user's main module again. These run nothing but what they are sent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_numbered(
    function: Callable[[int, Any], Any], items: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Yields `function(number, item)` of each item in order, worked out in `workers` processes.

    At most `workers` + 1 items are held. A single item, or a single worker, needs no process.

    Args:
        function: can be pickled, as can items and results.
        items: are counted from 0.
        workers: at least 1.

    Raises:
        RuntimeError: a process ended without an answer. What `function` raises is raised here.
    """
    numbered = enumerate(items)
    ahead = list(itertools.islice(numbered, 2))
    numbered = itertools.chain(ahead, numbered)
    if workers == 1 or len(ahead) < 2:
        yield from itertools.starmap(function, numbered)
        return
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(stack.enter_context(_Process(function)))
        # Left before the processes are: an error here must not wait for work under way.
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        waiting: deque = deque()
        for item in numbered:
            waiting.append(pool.submit(_ask_one, idle, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _ask_one(idle: queue.SimpleQueue, item: tuple[int, Any]) -> Any:
    process = idle.get()
    try:
        return process.ask(item)
    finally:
        idle.put(process)


class _Process:
    """One process; a context manager that ends it."""

    def __init__(self, function: Callable):
        self._function = function

    def __enter__(self) -> _Process:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from sr1_jax.retrieval.processes import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._send(self._function)
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def ask(self, item: tuple[int, Any]) -> Any:
        try:
            self._send(item)
            result, error = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as broken:
            raise RuntimeError(
                f"a worker process ended with code {self._process.wait()} before it was done; "
                "-9 is what the kernel does when memory runs out."
            ) from broken
        if error is not None:
            raise error
        return result


def _serve() -> None:
    # An interrupt from the keyboard reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print into the answers
    function = pickle.load(requests)
    while True:
        try:
            number, item = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = function(number, item), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
