"""What the person who waits gets to see: what is under way, and how long it will take."""

from __future__ import annotations

import collections
import contextlib
import statistics
import time
from collections.abc import Iterator

import rich
import rich.console
import rich.errors
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from sr1_jax.terminal import printable

# Steps of which the rate is taken. Of these the median: what compiles or evaluates is far off it.
_RECENT = 25


@contextlib.contextmanager
def working(what: str, console: rich.console.Console | None = None) -> Iterator[None]:
    """Shows that something is under way: a spinner at a terminal, elsewhere a line.

    What took over a second leaves a line with its time; what raised leaves none.

        with working("loading the policy"):
            policy = load()

    Args:
        what: is being done, in a few words.
        console: that shows it; None: the global one, standard output.
    """
    what = printable(what)
    began = time.perf_counter()
    console = console or rich.get_console()
    with contextlib.ExitStack() as stack:
        if console.is_terminal:
            # Before rich 14.1 a spinner within another is an error: the outer one is enough.
            with contextlib.suppress(rich.errors.LiveError):
                stack.enter_context(console.status(Text(f"{what} …")))
        else:
            print(f"{what} …", file=console.file, flush=True)
        yield
    seconds = time.perf_counter() - began
    if seconds > 1:
        print(f"{what}: {duration(seconds)}", file=console.file, flush=True)


@contextlib.contextmanager
def counting(what: str, total: int, *, start: int = 0) -> Iterator[Live]:
    """As `working`, with a count of what is done: a bar at a terminal, elsewhere a line.

        with counting("answering 200 questions", 200) as live:
            for number, question in enumerate(questions, start=1):
                live.update(number, EM=…)

    Args:
        what: is being done, in a few words.
        total: things to do.
        start: things done before.
    """
    began = time.perf_counter()
    live = Live(what, total, start=start)
    if not rich.get_console().is_terminal:
        print(f"{printable(what)} …", flush=True)
    try:
        yield live
    finally:
        live.close()
    seconds = time.perf_counter() - began
    if seconds > 1:
        print(f"{printable(what)}: {duration(seconds)}", flush=True)


def duration(seconds: float) -> str:
    """A time as people say it: 8.4 s, 75 s, 12 min, 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


class Live:
    """A progress bar with figures at a terminal; elsewhere a line every few seconds.

    The time left is that of recent steps. It shows from the second step on: the first compiles.

    Args:
        what: is under way.
        total: steps.
        start: steps done before.
        every_seconds: between two lines.
    """

    def __init__(self, what: str, total: int, *, start: int = 0, every_seconds: float = 5.0):
        self._what, self._total, self._step = printable(what), total, start
        self._every, self._printed = every_seconds, 0.0
        self._updated: float | None = None  # when the last step ended
        self._recent: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._bar = None
        if rich.get_console().is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[left]}", style="progress.remaining"),
                TextColumn("{task.fields[figures]}", markup=False),
                console=rich.get_console(),
            )
            self._task = self._bar.add_task(
                self._what, total=total, completed=start, figures="", left=""
            )
            self._bar.start()

    def update(self, step: int, **figures: float) -> None:
        """Shows figures after `step` of the total steps."""
        now = time.perf_counter()
        left = self._time_left(step, now)
        text = "  ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text, left=left)
        elif now - self._printed >= self._every or step == self._total:
            self._printed = now
            parts = [f"{self._what} {step}/{self._total}", text, left]
            print("  ".join(part for part in parts if part), flush=True)

    def _time_left(self, step: int, now: float) -> str:
        if self._updated is not None and step > self._step:
            self._recent.append((now - self._updated) / (step - self._step))
        self._step, self._updated = step, now
        if not self._recent:
            return ""
        return f"{duration(statistics.median(self._recent) * (self._total - step))} left"

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
