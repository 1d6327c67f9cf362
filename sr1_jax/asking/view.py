"""An answer at a terminal, while it comes about."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO

from rich.console import Console

from sr1_jax.asking.answer import Answered
from sr1_jax.asking.columns import Columns
from sr1_jax.asking.parts import Parts
from sr1_jax.data.questions import Question
from sr1_jax.environment import SearchRecord
from sr1_jax.environment.watched import Began, Called, Event, Shown, Wrote
from sr1_jax.evaluation.progress import duration
from sr1_jax.protocol.tags import ANSWER, THINK
from sr1_jax.retrieval.base import Passage
from sr1_jax.terminal import one_line

WIDTH = 80
# Lines of a passage, unless all are wanted.
_PASSAGE_LINES = 2

_QUESTION = "bold"
_STYLES = {THINK: "dim", ANSWER: "bold green"}
_REQUEST = "cyan"  # to any tool
_OUTSIDE = "yellow"  # of all tags: not the form that was asked for
_TITLE = "bold"
_QUIET = "dim"

_ENDS = {
    "truncated": "none: its budget of tokens ran out",
    "no_answer": "none: its last turn had no answer in it",
}


def make_console(file: TextIO | None = None) -> Console:
    """A console that writes colours to a terminal alone, and none where NO_COLOR is set.

    Args:
        file: that is written to; None: standard output.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(file=file, color_system=None if plain else "auto", highlight=False)


class View:
    """Shows one question after the other.

    Args:
        console: of `make_console`.
        tags: of the tools' requests.
        whole_passages: whether passages are shown whole, not their first lines.
    """

    def __init__(self, console: Console, tags: Collection[str], *, whole_passages: bool = False):
        self._columns = Columns(console, min(WIDTH, console.width))
        self._names = (THINK, ANSWER, *tags)
        self._parts = Parts(self._names)
        self._most = None if whole_passages else _PASSAGE_LINES
        self._answering = self._begins = False

    def begin(self, question: str, *, repeat: bool) -> None:
        """Makes ready for the next question.

        Args:
            question: that is asked.
            repeat: whether to show it; at a prompt it was typed.
        """
        self._parts = Parts(self._names)
        self._answering = self._begins = False
        if repeat:
            self._columns.label("question", _QUIET)
            self._columns.write(question, _QUESTION)
            self._columns.end_line()

    def watch(self, question: Question, sample: int, event: Event) -> None:
        """Shows what an episode got; see `environment.watched`."""
        match event:
            case Began(passages):
                if passages:
                    self._columns.label("found", _QUIET)
                    self._show_passages(passages)
            case Wrote(text):
                self._show_pieces(self._parts.add(text))
            case Called():
                self._end_segment()
            case Shown():
                self._end_segment()
                self._show(event)

    def end(self, answered: Answered) -> None:
        """Shows how an episode ended, and what it took."""
        self._end_segment()
        trajectory = answered.trajectory
        if trajectory.status != "answered":
            self._columns.label(ANSWER, _QUIET)
            self._columns.write(_ENDS.get(trajectory.status, "none"), "bold red")
        elif not self._answering:  # a template may open the tag in its prompt
            self._columns.label(ANSWER, _STYLES[ANSWER])
            self._columns.write(trajectory.answer, _STYLES[ANSWER])
        found = sum(len(hits) for hits in trajectory.passages)
        parts = [
            _counted(len(trajectory.searches), "search", "searches"),
            _counted(found, "passage", "passages"),
            _counted(int(trajectory.mask.sum()), "token", "tokens"),
            f"{duration(answered.seconds)}",
        ]
        self._columns.lines(" · ".join(parts), _QUIET)

    def stop(self) -> None:
        """Says that an answer was broken off."""
        self._end_segment()
        self._columns.lines("stopped", _QUIET)

    def complain(self, error: Exception) -> None:
        """Shows why a question has no answer."""
        self._end_segment()
        self._columns.label("error", "bold red")
        self._columns.write(one_line(str(error)), "")
        self._columns.end_line()

    def _end_segment(self) -> None:
        self._show_pieces(self._parts.end())
        self._columns.end_line()

    def _show_pieces(self, pieces: Iterable) -> None:
        for part, text, begins in pieces:
            style = _STYLES.get(part, _REQUEST if part else _OUTSIDE)
            self._begins |= begins
            if not part and not text.strip() and self._begins:
                continue  # between two tags
            if self._begins:
                self._columns.label(part, style)
                self._answering |= part == ANSWER
            self._begins = False
            self._columns.write(text, style)

    def _show(self, shown: Shown) -> None:
        if isinstance(shown.record, SearchRecord):
            self._show_found(shown.record)
        else:
            said = re.sub(r"(?s)^\s*<([\w-]+)>\s*(.*?)\s*</\1>\s*$", r"\2", shown.text)
            self._columns.label(shown.tag and "result", _QUIET)
            self._columns.write(said, _QUIET)
        if not shown.text:
            self._columns.lines("There is no room left to read this.", "bold red")

    def _show_found(self, record: SearchRecord) -> None:
        for query, passages in zip(record.queries, record.passages):
            if len(record.queries) > 1:
                self._columns.lines(query, _REQUEST)
            self._show_passages(passages)
        if record.reading is not None:
            self._columns.label("reads", _QUIET)
            self._columns.write(record.reading.answer or "nothing useful", "")
            self._columns.end_line()

    def _show_passages(self, passages: Sequence[Passage]) -> None:
        if not passages:
            self._columns.lines("nothing found", _QUIET)
        for rank, passage in enumerate(passages, start=1):
            self._columns.lines(f"{rank}. {passage.title or passage.id}", _TITLE)
            self._columns.lines(passage.text, _QUIET, indent=3, most=self._most)


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
