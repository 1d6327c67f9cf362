"""Where the time of a run goes: shares of the wall time since it was started or taken up again.

    useful      rollouts and updates, less what follows
    compile     tracing and compiling programs, wherever it happens
    tool_wait   rollouts that waited for a tool between two calls that decode
    evaluation  development questions
    checkpoint  saving, as far as training waits for it, and going back
    restore     reading a checkpoint when the run is taken up again
    other       the rest

The shares add up to 1. What compiles within another part counts as compile alone. Compile times are
those that JAX reports of itself.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import jax

# JAX reports how long each stage of making a program took under these names.
_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_PARTS = ("compile", "tool_wait", "evaluation", "checkpoint", "restore")


class Goodput(contextlib.AbstractContextManager):
    """Keeps the account of a run, from when it is entered.

    with Goodput() as goodput:
        with goodput("evaluation"):
            ...

    Args:
        finished: called when a part is over; None: nothing is.
    """

    def __init__(self, finished: Callable[[], None] | None = None):
        self._finished = finished
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._began = time.perf_counter()

    def __enter__(self) -> Goodput:
        self._began = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, seconds: float, **_) -> None:
        if event in _COMPILING:
            self._seconds["compile"] += seconds

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measures a part: "step", or one of those above."""
        began, compiled = time.perf_counter(), self._seconds["compile"]
        try:
            yield
        finally:
            compiling = self._seconds["compile"] - compiled
            self._seconds[part] += max(time.perf_counter() - began - compiling, 0.0)
        if self._finished is not None:
            self._finished()

    def metrics(self, stats: Mapping[str, float]) -> dict[str, float]:
        """goodput/<part>: shares of the time so far.

        Args:
            stats: of the rollouts of a step, whose wait for tools is added.
        """
        self._seconds["tool_wait"] += stats.get("rollout/tool_wait_seconds", 0.0)
        wall = max(time.perf_counter() - self._began, 1e-9)
        shares = {part: self._seconds[part] / wall for part in _PARTS}
        shares["useful"] = max(self._seconds["step"] / wall - shares["tool_wait"], 0.0)
        shares["other"] = max(1 - sum(shares.values()), 0.0)
        return {f"goodput/{part}": share for part, share in shares.items()}
