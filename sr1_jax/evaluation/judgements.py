"""Verdicts of a judge in a file: no answer is judged twice, by whatever evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr1_jax.rewards.judge import Item, Judge

# Verdicts are in the file after so many.
_BATCH = 64


class Judgements:
    """Asks a judge for what the file does not hold yet.

    Args:
        path: of the file, JSON lines; made if need be.
        model: name of the judge: verdicts of others in the same file do not count.
    """

    def __init__(self, path: Path, model: str):
        self._path, self._model = path, model
        self._known = dict(_read(path, model))

    def scores(self, judge: Judge, items: Sequence[Item]) -> list[bool]:
        """A verdict for each item, in their order. No prediction, or a blank one, is wrong.

        Args:
            judge: asked for new ones, some at a time; what it raises ends the call, and what it
                said before is kept.
            items: to be judged; equal ones have one verdict, so golden answers are tuples.
        """
        given = [item for item in items if (item.prediction or "").strip()]
        new = [item for item in dict.fromkeys(given) if item not in self._known]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            verdicts = judge.scores(batch)
            if len(verdicts) != len(batch):
                raise RuntimeError(f"The judge gave {len(verdicts)} verdicts for {len(batch)}.")
            self._keep(batch, [bool(verdict) for verdict in verdicts])
        return [self._known.get(item, False) for item in items]

    def _keep(self, items: Sequence[Item], verdicts: Sequence[bool]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = (
            {"model": self._model, **item._asdict(), "correct": verdict}
            for item, verdict in zip(items, verdicts)
        )
        # A line feed first: what was cut short before is no beginning of ours.
        text = "".join(f"\n{json.dumps(row)}" for row in rows) + "\n"
        with open(self._path, "ab", buffering=0) as file:
            file.write(text.encode("ascii"))
        self._known.update(zip(items, verdicts))


def _read(path: Path, model: str):
    """(item, verdict) of each line that can be read; a lost verdict is asked for again."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line in filter(None, lines):
        try:
            row: dict[str, Any] = json.loads(line)
            item = Item(row["question"], row["prediction"], tuple(row["golden_answers"]))
            if row["model"] == model:
                yield item, bool(row["correct"])
        except (ValueError, KeyError, TypeError):
            continue
