"""Where numbers go: metrics.jsonl, TensorBoard, and the person at the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import rich
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends one JSON object a step to metrics.jsonl, and the same scalars to TensorBoard.

    Args:
        workdir: of the run.
        start_step: steps done already; lines of later steps, left by a run that was cut off after
            its last checkpoint, are dropped: they will come again.
    """

    def __init__(self, workdir: Path, *, start_step: int = 0):
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(lines)
        temporary.replace(self._path)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the scalars of a step."""
        row = {"step": step} | {key: float(value) for key, value in metrics.items()}
        # JSON has no NaN; null says that a number was not one.
        clean = {k: v if math.isfinite(v) else None for k, v in row.items()} | {"step": step}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key != "step":
                self._board.add_scalar(key, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class NoWriter:
    """In the place of a `MetricsWriter` in all processes but the first."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        pass


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """All rows of metrics.jsonl; a last line cut short by a crash is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Live:
    """A progress bar with figures at a terminal; elsewhere a line every few seconds."""

    def __init__(self, what: str, total: int, *, start: int = 0, every_seconds: float = 5.0):
        self._what, self._total, self._start = what, total, start
        self._every, self._last, self._began = every_seconds, 0.0, time.perf_counter()
        self._bar = None
        if rich.get_console().is_terminal:
            self._bar = Progress(
                TextColumn(what),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self._task = self._bar.add_task(what, total=total, completed=start, figures="")
            self._bar.start()

    def update(self, step: int, **figures: float) -> None:
        """Shows figures after `step` of the total steps."""
        text = "  ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
            return
        now = time.perf_counter()
        if now - self._last >= self._every or step == self._total:
            self._last = now
            left = (now - self._began) / max(step - self._start, 1) * (self._total - step)
            print(f"{self._what} {step}/{self._total}  {text}  {left:.0f} s left", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
