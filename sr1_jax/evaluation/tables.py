"""Tables of scores that fit the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import rich.box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sr1_jax.evaluation.score_table import JUDGE, QUESTION_SCORES
from sr1_jax.evaluation.scores import SCORES
from sr1_jax.terminal import one_line

# Key of half the width of the interval of exact match.
HALF_WIDTH = "em_half_width"
# Beginnings of keys of several samples of a question, and of the headings of their columns.
_OF_SAMPLES = {"majority@": "maj@", "pass@": "pass@"}


class Column(NamedTuple):
    """A column of scores.

    Attributes:
        key: of the score in a row.
        heading: one line, or two.
        digits: after the point.
    """

    key: str
    heading: str
    digits: int = 3


class Row(NamedTuple):
    """A row: what it is about, and scores by key."""

    labels: tuple[str, ...]
    scores: Mapping[str, Any]


def score_columns(
    scores: Mapping[str, Any], *, prefix: str = "", above: str = "", brief: bool = False
) -> list[Column]:
    """Columns of all scores that have a heading, exact match by hops behind that of all, and those
    of evaluations alone where there are any.

    Args:
        scores: a row, which says whether there are hops.
        prefix: of the keys.
        above: first line of each heading.
        brief: only those of the short table.
    """
    columns = []
    for one in SCORES:
        if one.heading and (one.brief or not brief):
            columns.append(Column(prefix + one.key, one.heading, one.digits))
        if one.key == "em":
            start = f"{prefix}em_"
            hops = sorted(k for k in scores if k.startswith(start) and k.endswith("_hop"))
            columns += [Column(k, k.removeprefix(start).replace("_", "-")) for k in hops]
            columns += _columns_of_samples(scores, prefix)
        if one.key == "substring" and not brief:
            columns += _columns_of_evaluations(scores, prefix)
    if above:
        columns = [column._replace(heading=f"{above}\n{column.heading}") for column in columns]
    return columns


def _columns_of_samples(scores: Mapping[str, Any], prefix: str) -> list[Column]:
    """The vote of all samples of a question, and the best of as many."""
    columns = []
    for start, heading in _OF_SAMPLES.items():
        counts = [
            int(key.removeprefix(prefix + start))
            for key in scores
            if key.startswith(prefix + start)
        ]
        columns += [Column(f"{prefix}{start}{k}", f"{heading}{k}") for k in sorted(counts)[-1:]]
    return columns


def _columns_of_evaluations(scores: Mapping[str, Any], prefix: str) -> list[Column]:
    """Scores that evaluations alone have, where a row has them."""
    every = [Column(JUDGE, "judge")]
    every += [Column(one.key, one.heading, one.digits) for one in QUESTION_SCORES]
    return [c._replace(key=prefix + c.key) for c in every if prefix + c.key in scores]


def cells_of(row: Row, columns: Sequence[Column]) -> list[str]:
    """The texts of a row; "" where it has no such score."""
    cells = [one_line(label) for label in row.labels]
    for column in columns:
        value = row.scores.get(column.key)
        cells.append("" if value is None else f"{value:.{column.digits}f}")
    return cells


def print_scores(
    console: Console,
    title: str,
    labels: Sequence[str],
    rows: Sequence[Row],
    columns: Sequence[Column],
) -> None:
    """Prints a table in which no cell is broken. Columns at the end that do not fit are left out,
    and named below.

    Args:
        console: where to; what is no terminal is taken to be 80 columns wide.
        title: above the table.
        labels: headings of the labels.
        rows: with as many labels each.
        columns: those that tell most first.
    """
    shown = _those_that_fit(console.width, labels, rows, columns)
    table = Table(title=Text(one_line(title)), box=rich.box.SIMPLE_HEAD, padding=0, show_edge=False)
    for label in labels:
        table.add_column(f"{label} ", overflow="fold")
    for column in shown:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, cells_of(row, shown)))
    console.print(table)
    if left_out := [" ".join(c.heading.split()) for c in columns[len(shown) :]]:
        console.print(
            f"A wider terminal also shows {', '.join(left_out)}.", style="dim", highlight=False
        )


def markdown(labels: Sequence[str], rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The whole table as Markdown."""
    headings = [*labels, *(" ".join(column.heading.split()) for column in columns)]
    return markdown_table(headings, [cells_of(row, columns) for row in rows])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a table of Markdown, in which none of them is taken for two."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |\n"

    return "".join(map(line, [headings, ["---"] * len(headings), *rows]))


def _those_that_fit(
    width: int, labels: Sequence[str], rows: Sequence[Row], columns: Sequence[Column]
) -> Sequence[Column]:
    cells = [[*labels, *(column.heading for column in columns)]]
    cells += [cells_of(row, columns) for row in rows]
    # A space between two columns, and another behind each label.
    used, count = len(labels) - 1, len(labels)
    for number, texts in enumerate(zip(*cells)):
        used += 1 + _width(line for text in texts for line in text.split("\n"))
        if number > count and used > width:  # the first score is always shown
            return columns[: number - count]
    return columns


def _width(lines: Iterable[str]) -> int:
    return max(map(cell_len, lines), default=0)
