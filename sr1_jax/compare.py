"""One table of several finished runs.

    python -m sr1_jax.compare runs/demo runs/demo_direct runs/demo_rag … [--output=table.md]

Reads result.json of each; the first is compared with the best of the others. A run whose folder
name ends in an ablation (no_mask) stands beside the baselines and does not count as one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich
import rich.box
from absl import flags
from rich.table import Table

from sr1_jax import cli
from sr1_jax.evaluation.scores import standard_error
from sr1_jax.paths import local_path

_ABLATIONS = ("no_mask",)
_COLUMNS = (
    ("EM", "em"),
    ("one-hop", "em_1_hop"),
    ("two-hop", "em_2_hop"),
    ("F1", "f1"),
    ("searches", "searches"),
)


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("output", "", "Also write the table as Markdown.", flag_values=values)
    names = cli.parse(values, argv, required=(), usage=__doc__, positional=True)
    folders = [local_path(name, "workdir") for name in names]
    output = local_path(values.output, "--output") if values.output else None
    if len(folders) < 2:
        raise ValueError("Name at least two workdirs of finished runs.")
    rows = [(folder.name, read_result(folder)) for folder in folders]
    title = f"{rows[0][1]['dev_questions']} questions of {rows[0][1]['dev']}"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    titles = ["run", *(f"greedy {title}" for title, _ in _COLUMNS), "sampled EM", "± (s.e.)"]
    for title in titles:
        side = "left" if title == "run" else "right"
        table.add_column(title, justify=side, no_wrap=title == "run")
    cells = [_cells(name, result) for name, result in rows]
    for row in cells:
        table.add_row(*row)
    rich.print(table)
    verdict = gain(rows)
    print(verdict)
    if output:
        lines = [titles, ["---"] * len(titles), *cells]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        output.write_text(f"{text}\n\n{verdict}\n")


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run.

    Raises:
        ValueError: the run has not finished, or was not evaluated.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the run has not finished; run sr1_jax.train.")
    result = json.loads(path.read_text())
    if "after" not in result:
        raise ValueError(f"{path} has no scores: the run had no data.dev to be evaluated on.")
    return result


def gain(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """How much better the first run is than the best baseline, as a sentence."""
    (name, first), *others = rows
    score = first["after"]["greedy/em"]
    baselines = [
        (result["after"]["greedy/em"], other)
        for other, result in others
        if not other.endswith(_ABLATIONS)
    ]
    if not baselines:
        return f"{name} {score:.3f}; no baseline is among the others."
    best, best_name = max(baselines)
    relative = f"{(score / best - 1):+.0%}" if best else "no finite gain"
    return f"{name} {score:.3f} against {best:.3f} of {best_name}, the best baseline: {relative}."


def _cells(name: str, result: dict[str, Any]) -> list[str]:
    after = result["after"]
    cells = [name]
    for _, key in _COLUMNS:
        value = after.get(f"greedy/{key}")
        cells.append("" if value is None else f"{value:.3f}")
    sampled = after.get("sampled/em")
    error = standard_error(after["greedy/em"], result["dev_questions"])
    return [*cells, "" if sampled is None else f"{sampled:.3f}", f"{error:.3f}"]


if __name__ == "__main__":
    cli.run(main)
