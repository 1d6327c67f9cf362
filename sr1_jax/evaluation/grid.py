"""The table of methods over sets of questions: exact match, its intervals, and differences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sr1_jax.evaluation.intervals import LEVEL, Interval, paired_macro_difference
from sr1_jax.evaluation.results import (
    HALF_WIDTH_MEANING,
    MACRO,
    as_table_row,
    average,
    columns_of,
    describe,
    digest,
    interval_in,
    joined,
    print_meaning_of_half_width,
)
from sr1_jax.evaluation.score_table import ScoreTable
from sr1_jax.evaluation.tables import markdown, markdown_table, print_scores
from sr1_jax.paths import write_whole
from sr1_jax.terminal import one_line

# A name in a heading goes over several lines of so many characters.
_HEADING_WIDTH = 9


class Entry(NamedTuple):
    """The result of one method on one set.

    Attributes:
        name: of its files, less their endings.
        result: see `evaluate`.
        table: its scores by trajectory.
    """

    name: str
    result: Mapping[str, Any]
    table: ScoreTable


class Grid(NamedTuple):
    """Results of methods on the same sets.

    Attributes:
        sets: names, as results have them; of equal ones with the beginning of the questions' hash.
        entries: of each method, set by set.
        means: of each method, the average in which each set counts the same; with one set it is
            that set's result.
        differences: exact match of the first method less that of each other, on average over sets;
            of the questions that both answered.
    """

    sets: tuple[str, ...]
    entries: Mapping[str, Sequence[Entry]]
    means: Mapping[str, Mapping[str, Any]]
    differences: Mapping[str, Interval]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.entries)


def grid_of(entries: Mapping[str, Sequence[Entry]]) -> Grid:
    """Puts results together.

    Args:
        entries: of each method on the same sets, in the same order.
    """
    first, *others = entries
    means = {method: mean_of(row) for method, row in entries.items()}
    exact = {method: [e.table.values("em") for e in row] for method, row in entries.items()}
    return Grid(
        tuple(_labels([entry.result for entry in entries[first]])),
        entries,
        means,
        {
            other: paired_macro_difference(exact[first], exact[other], common=True)
            for other in others
        },
    )


def mean_of(entries: Sequence[Entry]) -> Mapping[str, Any]:
    """The average of a method over sets; of one set, its result."""
    if len(entries) == 1:
        return entries[0].result
    return average(
        [entry.result for entry in entries],
        [entry.table for entry in entries],
        [entry.name for entry in entries],
    )


def grid_name(grid: Grid) -> str:
    """A file name that differs wherever any of the results does."""
    names = sorted(entry.name for row in grid.entries.values() for entry in row)
    first = grid.means[grid.methods[0]]
    parts = ["table", joined(grid.methods, "methods"), joined(grid.sets, "sets")]
    parts += [first["policy"].replace(" ", "_"), f"results_{digest(names)}"]
    return ".".join(parts)


def write_grid(folder: Path, grid: Grid) -> None:
    """Writes the table as JSON and Markdown; of a single method, whose average has a file of its
    own, as Markdown alone."""
    name = grid_name(grid)
    write_whole(folder / f"{name}.md", grid_markdown(grid))
    if len(grid.methods) > 1:
        write_whole(folder / f"{name}.json", json.dumps(grid_data(grid), indent=1) + "\n")


def grid_data(grid: Grid) -> dict[str, Any]:
    """The table for JSON: of each method, by set and on average, all scores and their intervals."""
    first = grid.means[grid.methods[0]]
    same = ("policy", "greedy", "samples", "limit", "judge_model")
    return {
        "methods": list(grid.methods),
        "sets": list(grid.sets),
        **{key: first[key] for key in same if key in first},
        "interval_level": LEVEL,
        "results": {
            method: dict(zip(grid.sets, (entry.name for entry in row)))
            for method, row in grid.entries.items()
        },
        "em": {
            method: {
                column: {"mean": result["em"], "interval": result["intervals"]["em"]}
                for column, result in _cells(grid, method)
            }
            for method in grid.methods
        },
        "averages": {
            method: {key: grid.means[method][key] for key in grid.means[method]["intervals"]}
            for method in grid.methods
        },
        "differences": [
            {
                "of": grid.methods[0],
                "to": other,
                "em": difference.mean,
                "interval": [difference.low, difference.high],
            }
            for other, difference in grid.differences.items()
        ],
    }


def grid_markdown(grid: Grid) -> str:
    """The table as Markdown: exact match, then all scores on average, then differences."""
    cells = [
        [method, *(_with_ends(interval_in(result)) for _, result in _cells(grid, method))]
        for method in grid.methods
    ]
    exact = markdown_table(["method", *_columns(grid)], cells)
    rows = [as_table_row((method,), grid.means[method]) for method in grid.methods]
    parts = [
        f"{_title(grid)}, with {LEVEL:.0%} intervals.\n",
        exact,
        f"{'All scores, averaged over the sets' if len(grid.sets) > 1 else 'All scores'}; "
        f"±: {HALF_WIDTH_MEANING}.\n",
        markdown(["method"], rows, columns_of(rows)),
    ]
    listed = [*differences_in_words(grid), *_changes(grid)]
    return "\n".join(parts) + "".join(f"\n{line}\n" for line in listed)


def print_grid(grid: Grid, console: Console) -> None:
    """Prints exact match by method and set, within the width of the console: with many sets the
    interval stands below its mean, with more the table goes on below."""
    width, label = console.width, max(map(cell_len, ["method", *map(one_line, grid.methods)]))
    columns = [(name, _folded(name)) for name in _columns(grid)]
    cell = len("0.352 ±0.033")
    wide = label + sum(1 + max(cell, _width(heading)) for _, heading in columns) <= width
    break_line, least = (" ", cell) if wide else ("\n", len("±0.033"))
    blocks: list[list[tuple[str, str]]] = [[]]
    used = label
    for column in columns:
        more = 1 + max(least, _width(column[1]))
        if blocks[-1] and used + more > width:
            blocks.append([])
            used = label
        blocks[-1].append(column)
        used += more
    for number, block in enumerate(blocks):
        title = Text(one_line(_title(grid))) if number == 0 else None
        table = Table(title=title, box=rich.box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("method ", overflow="fold")
        for _, heading in block:
            table.add_column(heading, justify="right", no_wrap=True)
        for method in grid.methods:
            results = dict(_cells(grid, method))
            cells = [_with_half_width(interval_in(results[name]), break_line) for name, _ in block]
            table.add_row(Text(one_line(method)), *map(Text, cells))
        console.print(table)
    print_meaning_of_half_width(console)
    rows = [as_table_row((method,), grid.means[method]) for method in grid.methods]
    title = "Averages over the sets" if len(grid.sets) > 1 else "All scores"
    print_scores(console, title, ["method"], rows, columns_of(rows))
    for line in (*differences_in_words(grid), *_changes(grid)):
        console.print(line, markup=False, highlight=False)


def differences_in_words(grid: Grid) -> list[str]:
    """What the first method is better by than each other, a line each."""
    if not grid.differences:
        return []
    first = grid.methods[0]
    where = "on average over the sets" if len(grid.sets) > 1 else f"on {one_line(grid.sets[0])}"
    return [f"Differences in exact match, {where}:"] + [
        one_line(f"{first} less {other}: {difference_text(difference)}")
        for other, difference in grid.differences.items()
    ]


def difference_text(difference: Interval) -> str:
    """A difference, its interval, and whether they leave it open which is better."""
    ends = f"[{difference.low:+.3f}, {difference.high:+.3f}]"
    return f"{difference.mean:+.3f} {ends}" + ("" if difference.resolved else ", not resolved")


def _title(grid: Grid) -> str:
    first = grid.means[grid.methods[0]]
    how = "greedy" if first["greedy"] else "sampled"
    times = f" ×{first['samples']}" if first["samples"] > 1 else ""
    return f"Exact match of {first['policy']}, {how}{times}, {first['count']} questions"


def _changes(grid: Grid) -> Iterable[str]:
    """Settings that are not the run's, each once."""
    found = (describe(mean["settings_changed"] or {}) for mean in grid.means.values())
    return dict.fromkeys(filter(None, found))


def _labels(results: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    names = [result["questions"] for result in results]
    for name, result in zip(names, results):
        yield name if names.count(name) == 1 else f"{name} {result['questions_sha256'][:8]}"


def _columns(grid: Grid) -> list[str]:
    return [*grid.sets, *([MACRO] if len(grid.sets) > 1 else [])]


def _cells(grid: Grid, method: str) -> list[tuple[str, Mapping[str, Any]]]:
    results = [*zip(grid.sets, (entry.result for entry in grid.entries[method]))]
    return [*results, *([(MACRO, grid.means[method])] if len(results) > 1 else [])]


def _with_half_width(interval: Interval, between: str) -> str:
    return f"{interval.mean:.3f}{between}±{interval.half_width:.3f}"


def _with_ends(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _folded(name: str) -> str:
    """A heading in lines that are short enough for many columns."""
    lines = []
    for word in one_line(name).split():
        starts = range(0, len(word), _HEADING_WIDTH)
        lines += [word[start : start + _HEADING_WIDTH] for start in starts]
    return "\n".join(lines)


def _width(heading: str) -> int:
    return max(map(cell_len, heading.split("\n")))
