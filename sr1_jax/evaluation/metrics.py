"""Where numbers go: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from sr1_jax.evaluation.progress import Live as Live
from sr1_jax.terminal import one_line


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
        """Writes the scalars of a step; what is not finite becomes null, as JSON has no NaN, and
        is left out of TensorBoard, which draws none."""
        values = {key: float(value) for key, value in metrics.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step} | finite) + "\n")
        self._file.flush()
        for key, value in finite.items():
            if value is not None:
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


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl that can be read.

    A damaged line is left out and reported on stderr with its number. So is an incomplete last
    line, which a run leaves that is killed while it writes.
    """
    path = workdir / "metrics.jsonl"
    rows = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_as_row(line))
        except ValueError as error:
            cut = number == len(lines)
            what = "is cut short" if cut else f"is damaged ({one_line(str(error))})"
            print(f"{path}:{number} {what} and left out.", file=sys.stderr, flush=True)
    return rows


def _as_row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode("utf-8"))  # what either raises is a ValueError
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("no object with a step")
    return row
