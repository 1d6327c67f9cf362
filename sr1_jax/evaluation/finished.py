"""Which results of an evaluation under way are written: another start takes them as they are.

An evaluation of several methods on several sets has a file of their names until it is over. Its
name says all that the answers depend on, so another evaluation never takes anything from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr1_jax.evaluation.grid import Entry
from sr1_jax.evaluation.results import digest
from sr1_jax.evaluation.score_table import read_scores, score_path


class FinishedResults:
    """The results of an evaluation under way that are written.

    Args:
        folder: of results.
        facts: JSON-able, that any of the answers depends on.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        self._folder = folder
        self._path = folder / f"under_way.{digest(facts, 16)}"
        # A name that was cut short names no file.
        lines = self._path.read_text().split("\n") if self._path.is_file() else []
        self._names = set(lines)

    def find(self, name: str) -> Entry | None:
        """A result that is written, and can be read back; None otherwise."""
        path = self._folder / f"{name}.json"
        if json.dumps(name) not in self._names or not path.is_file():
            return None
        try:
            return Entry(name, json.loads(path.read_text()), read_scores(score_path(path)))
        except ValueError:
            return None

    def add(self, name: str) -> None:
        """Notes that a result and all that belongs to it is written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab", buffering=0) as file:
            file.write(f"\n{json.dumps(name)}\n".encode("ascii"))

    def delete(self) -> None:
        """Forgets them: the evaluation is over, and the next one asks again."""
        self._path.unlink(missing_ok=True)
