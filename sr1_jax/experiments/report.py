"""What came of an experiment: a table of all rows with intervals, as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sr1_jax.evaluation.intervals import (
    Interval,
    Values,
    bootstrap_macro,
    paired_macro_difference,
)
from sr1_jax.evaluation.score_table import read_scores, score_path
from sr1_jax.evaluation.tables import Column, markdown, print_scores
from sr1_jax.evaluation.tables import Row as TableRow
from sr1_jax.experiments.plan import Plan

_SCORE = "em"
# Beside exact match, where results have them.
_OTHERS = ("f1", "searches", "response_tokens", "well_formed", "truncated", "gold_recall")
# Parts of exact match: of questions of some hops, of a kind, of a source.
_PARTS = ("em_", "em/")
_NO_PARTS = ("em_standard_error", "em_macro")


class Found(NamedTuple):
    """The result of a row on a set of questions, with one seed.

    Attributes:
        result: as evaluate wrote it.
        values: exact match by question.
    """

    result: Mapping[str, Any]
    values: Values


def write_table(plan: Plan, name: str) -> dict[str, Any]:
    """Writes `name`.json and `name`.md to the folder of an experiment whose stages are done.

    Returns:
        What the JSON file holds: see `table_of`.

    Raises:
        ValueError: a result is missing or damaged; names it.
    """
    table = table_of(plan)
    _write(plan.folder / f"{name}.json", json.dumps(table, indent=1) + "\n")
    rows, columns = _layout(table)
    text = f"{_title(table)}\n\n{markdown(['row'], rows, columns)}\n{gains(table)}\n"
    _write(plan.folder / f"{name}.md", text)
    return table


def table_of(plan: Plan) -> dict[str, Any]:
    """All rows as plain data.

    Returns:
        seeds, sets, count (of questions, over sets and seeds), reference (key of the row that the
        others are compared with) and rows by key, each with label, method, em and, but for the
        reference, difference (the row less the reference): each a mean and the ends of its 95 %
        interval; by_set, by_seed: means of exact match; parts: of kinds of questions; others:
        means of other scores.

    Raises:
        ValueError: as `write_table`.
    """
    found = {
        key: {(seed, name): one for seed in plan.seeds for name, one in _found(plan, seed, key)}
        for key in plan.rows
    }
    reference = found[plan.reference]
    sets = list(dict.fromkeys(name for _, name in reference))
    rows = {}
    for key, row in plan.rows.items():
        rows[key] = {"label": row.label, "method": row.method} | _figures(found[key], plan, sets)
        if key != plan.reference:
            values, theirs = (
                {f"{seed} {name}": one.values for (seed, name), one in some.items()}
                for some in (found[key], reference)
            )
            rows[key]["difference"] = list(paired_macro_difference(values, theirs))
    return {
        "seeds": list(plan.seeds),
        "sets": sets,
        "count": sum(one.result["count"] for one in reference.values()),
        "reference": plan.reference,
        "rows": rows,
    }


def print_table(table: Mapping[str, Any], console: Console) -> None:
    """Prints the table of `table_of`."""
    rows, columns = _layout(table)
    print_scores(console, _title(table), ["row"], rows, columns)
    console.print(gains(table), markup=False, highlight=False)


def gains(table: Mapping[str, Any]) -> str:
    """How much better the reference is than each other row, a line each: relative to that row, as
    the paper tells it, and the difference with its interval."""
    name = table["reference"]
    reference = table["rows"][name]
    lines = []
    for key, row in table["rows"].items():
        if key == name:
            continue
        # The other way round: how much the reference is above the row.
        mean, low, high = (-row["difference"][i] for i in (0, 2, 1))
        score = row["em"][0]
        relative = f"{reference['em'][0] / score - 1:+.0%}" if score else "no finite gain"
        resolved = "" if Interval(mean, low, high).resolved else ", not resolved"
        lines.append(
            f"{reference['label']} over {row['label']}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            f"{resolved}; {relative}"
        )
    return "\n".join(lines)


def _figures(found: Mapping[tuple[int, str], Found], plan: Plan, sets: list[str]) -> dict[str, Any]:
    def mean(key: str, pairs: list[tuple[int, str]]) -> float | None:
        known = [found[pair].result.get(key) for pair in pairs]
        known = [value for value in known if value is not None]
        return sum(known) / len(known) if known else None

    every = list(found)
    keys = dict.fromkeys(key for one in found.values() for key in one.result)
    parts = [key for key in keys if key.startswith(_PARTS) and key not in _NO_PARTS]
    parts = [key for key in parts if not isinstance(found[every[0]].result.get(key), (list, str))]
    values = {f"{seed} {name}": one.values for (seed, name), one in found.items()}
    return {
        "em": list(bootstrap_macro(values)),
        "by_set": {name: mean(_SCORE, [p for p in every if p[1] == name]) for name in sets},
        "by_seed": {
            str(seed): mean(_SCORE, [p for p in every if p[0] == seed]) for seed in plan.seeds
        },
        "parts": {key: mean(key, every) for key in parts},
        "others": {key: mean(key, every) for key in _OTHERS if key in keys},
    }


def _found(plan: Plan, seed: int, key: str) -> Iterator[tuple[str, Found]]:
    """The results of a row with a seed, by name of the set."""
    row = plan.rows[key]
    folder = plan.workdir(seed, row.run) / "eval"
    newest: dict[str, tuple[float, Path, Mapping[str, Any]]] = {}
    for path in folder.glob("*.json"):
        result = _read(path)
        fits = (
            result.get("method") == row.method
            and "files" not in result  # an average
            and result.get("greedy", False)
            and result.get("limit") == plan.limit
            and (result.get("policy") == "base") == row.of_base
        )
        if fits:
            name, entry = result["questions"], (path.stat().st_mtime, path, result)
            newest[name] = max(newest.get(name, entry), entry, key=lambda one: one[0])
    if not newest:
        raise ValueError(
            f"{folder} has no result of {row.method}: remove {plan.folder}/stages/seed_{seed}_"
            f"*_evaluate.json to evaluate again."
        )
    for name in sorted(newest):
        _, path, result = newest[name]
        yield name, Found(result, read_scores(score_path(path)).values(_SCORE))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again.") from error


def _layout(table: Mapping[str, Any]) -> tuple[list[TableRow], list[Column]]:
    """Rows and columns: exact match, its interval, by set, the range over seeds, other scores."""
    rows = []
    for row in table["rows"].values():
        mean, low, high = row["em"]
        by_seed = list(row["by_seed"].values())
        scores = {
            "em": mean,
            "low": low,
            "high": high,
            "least": min(by_seed),
            "greatest": max(by_seed),
        }
        scores |= {f"set {name}": value for name, value in row["by_set"].items()}
        scores |= row["parts"] | row["others"]
        rows.append(TableRow((row["label"],), scores))
    columns = [Column("em", "EM"), Column("low", "95 %\nfrom"), Column("high", "\nto")]
    if len(table["sets"]) > 1:
        columns += [Column(f"set {name}", _short(name)) for name in table["sets"]]
    if len(table["seeds"]) > 1:
        columns += [Column("least", "seeds\nleast"), Column("greatest", "\nmost")]
    parts = dict.fromkeys(key for row in table["rows"].values() for key in row["parts"])
    columns += [Column(key, _short(key.removeprefix("em_").removeprefix("em/"))) for key in parts]
    headings = {"searches": ("search", 2), "response_tokens": ("tokens", 1)}
    others = dict.fromkeys(key for row in table["rows"].values() for key in row["others"])
    for key in others:
        heading, digits = headings.get(key, (key.replace("_", "\n", 1), 3))
        columns.append(Column(key, heading, digits))
    return rows, columns


def _short(name: str) -> str:
    """A heading of two lines, where it has two words or more."""
    name = name.removeprefix("dev_").replace("/", "_")
    return name.replace("_", "\n", 1)


def _title(table: Mapping[str, Any]) -> str:
    seeds = len(table["seeds"])
    over = f", {seeds} seeds" if seeds > 1 else ""
    return f"Exact match on {table['count']} questions of {', '.join(table['sets'])}{over}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
