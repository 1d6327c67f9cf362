"""What came of an experiment: a table of all rows with intervals, as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from sr1_jax.evaluation.grid import difference_text
from sr1_jax.evaluation.intervals import (
    Interval,
    bootstrap_macro,
    paired_macro_difference,
)
from sr1_jax.evaluation.score_table import read_scores, score_path
from sr1_jax.evaluation.tables import Column, markdown, print_scores
from sr1_jax.evaluation.tables import Row as TableRow
from sr1_jax.experiments.plan import Plan
from sr1_jax.paths import write_whole

_SCORE = "em"
# Beside exact match, where results have them.
_OTHERS = ("f1", "searches", "response_tokens", "well_formed", "truncated", "gold_recall")
# Parts of exact match: of questions of some hops, of a kind, of a source.
_PARTS = ("em_", "em/")
_NO_PARTS = ("em_standard_error", "em_macro")


# Seed, name of the set, hash of its questions.
Key = tuple[int, str, str]


class Found(NamedTuple):
    """The result of a row on a set of questions, with one seed.

    Attributes:
        result: as evaluate wrote it.
        values: exact match by question.
    """

    result: Mapping[str, Any]
    values: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        """Of the set."""
        return self.result["questions"]

    @property
    def sha256(self) -> str:
        """Of the questions."""
        return self.result["questions_sha256"]


def write_table(plan: Plan, name: str) -> dict[str, Any]:
    """Writes `name`.json and `name`.md to the folder of an experiment whose stages are done.

    Returns:
        What the JSON file holds: see `table_of`.

    Raises:
        ValueError: a result is missing or damaged; names it.
    """
    table = table_of(plan)
    write_whole(plan.folder / f"{name}.json", json.dumps(table, indent=1) + "\n")
    rows, columns = _layout(table)
    lines = "".join(f"- {line}\n" for line in gains(table).splitlines())
    text = f"{_title(table)}\n\n{markdown(['row'], rows, columns)}\n{lines}"
    write_whole(plan.folder / f"{name}.md", text)
    return table


def table_of(plan: Plan) -> dict[str, Any]:
    """All rows as plain data.

    Returns:
        seeds, sets, count (of different questions), reference (key of the row that the others are
        compared with) and rows by key, each with label, method, em and, but for the
        reference, difference (the row less the reference): each a mean and the ends of its 95 %
        interval; by_set, by_seed: means of exact match; parts: of kinds of questions; others:
        means of other scores.

    Raises:
        ValueError: as `write_table`.
    """
    found = {
        key: {
            (seed, one.name, one.sha256): one
            for seed in plan.seeds
            for one in _found(plan, seed, key)
        }
        for key in plan.rows
    }
    reference = found[plan.reference]
    sets = list(dict.fromkeys(one.name for one in reference.values()))
    theirs = _pooled(reference)
    rows = {}
    for key, row in plan.rows.items():
        rows[key] = {"label": row.label, "method": row.method} | _figures(found[key], plan, sets)
        if key != plan.reference:
            ours = _pooled(found[key])
            difference = paired_macro_difference(ours, theirs, common=True)
            rows[key]["difference"] = list(difference)
    return {
        "seeds": list(plan.seeds),
        "sets": sets,
        "count": sum(map(len, theirs.values())),
        "reference": plan.reference,
        "rows": rows,
    }


def _pooled(found: Mapping[Key, Found]) -> dict[str, dict[str, np.ndarray]]:
    """Values by question of each set of questions, those of all seeds together: a question is drawn
    with all its values. Sets of one name are apart where their questions differ, as those of the
    fictional worlds of several seeds do."""
    pooled: dict[str, dict[str, list[np.ndarray]]] = {}
    for (_, name, sha256), one in found.items():
        questions = pooled.setdefault(f"{name} {sha256}", {})
        for question, values in one.values.items():
            questions.setdefault(question, []).append(np.atleast_1d(values))
    return {
        name: {question: np.concatenate(parts) for question, parts in questions.items()}
        for name, questions in pooled.items()
    }


def print_table(table: Mapping[str, Any], console: Console) -> None:
    """Prints the table of `table_of`."""
    rows, columns = _layout(table)
    print_scores(console, _title(table), ["row"], rows, columns)
    if lines := gains(table):
        console.print(lines, markup=False, highlight=False)


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
        gain = Interval(*(0.0 - row["difference"][i] for i in (0, 2, 1)))
        score = row["em"][0]
        relative = f"{reference['em'][0] / score - 1:+.0%}" if score else "no finite gain"
        lines.append(
            f"{reference['label']} over {row['label']}: {difference_text(gain)}; {relative}"
        )
    return "\n".join(lines)


def _figures(found: Mapping[Key, Found], plan: Plan, sets: list[str]) -> dict[str, Any]:
    def mean(key: str, some: Iterable[Found]) -> float | None:
        known = [one.result[key] for one in some if one.result.get(key) is not None]
        return sum(known) / len(known) if known else None

    every = list(found.values())
    keys = dict.fromkeys(key for one in every for key in one.result)
    parts = [key for key in keys if key.startswith(_PARTS) and key not in _NO_PARTS]
    return {
        "em": list(bootstrap_macro(_pooled(found))),
        "by_set": {name: mean(_SCORE, [o for o in every if o.name == name]) for name in sets},
        "by_seed": {
            str(seed): mean(_SCORE, [one for key, one in found.items() if key[0] == seed])
            for seed in plan.seeds
        },
        "parts": {key: mean(key, every) for key in parts},
        "others": {key: mean(key, every) for key in _OTHERS if key in keys},
    }


def _found(plan: Plan, seed: int, key: str) -> list[Found]:
    """The results of a row with a seed: those that its evaluation listed, and no others that may
    lie beside them."""
    row = plan.rows[key]
    listed = plan.results_list(seed, row.run)
    if not listed.is_file():
        raise ValueError(
            f"{listed} is missing: evaluate again, by removing the record of that stage."
        )
    found = []
    for path in map(Path, _read(listed)):
        result = _read(path)
        if result["method"] == row.method:
            found.append(Found(result, read_scores(score_path(path)).values(_SCORE)))
    if not found:
        raise ValueError(f"{listed} has no result of {row.method}.")
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; evaluate again.") from error
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
    headings = {"searches": ("search", 2), "response_tokens": ("tokens", 1)}
    others = dict.fromkeys(key for row in table["rows"].values() for key in row["others"])
    for key in others:
        heading, digits = headings.get(key, (key.replace("_", "\n", 1), 3))
        columns.append(Column(key, heading, digits))
    parts = dict.fromkeys(key for row in table["rows"].values() for key in row["parts"])
    columns += [Column(key, _short(key.removeprefix("em_").removeprefix("em/"))) for key in parts]
    return rows, columns


def _short(name: str) -> str:
    """A heading of two lines, where it has two words or more."""
    name = name.removeprefix("dev_").replace("/", "_")
    return name.replace("_", "\n", 1)


def _title(table: Mapping[str, Any]) -> str:
    seeds = len(table["seeds"])
    over = f", {seeds} seeds" if seeds > 1 else ""
    return f"Exact match on {table['count']} questions of {', '.join(table['sets'])}{over}"
