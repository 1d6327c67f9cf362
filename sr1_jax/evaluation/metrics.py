"""Where numbers go: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from sr1_jax.evaluation.progress import Live as Live


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
