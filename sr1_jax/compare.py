"""One table of several finished runs.

    python -m sr1_jax.compare runs/demo runs/demo_direct runs/demo_rag … [--output=table.md]

Reads result.json of each, all on the same questions; the first is compared with the best of the
others. A run whose folder name ends in an ablation (no_mask) stands beside the baselines and does
not count as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from absl import flags

from sr1_jax import cli
from sr1_jax.evaluation.scores import standard_error
from sr1_jax.evaluation.tables import Column, Row, markdown, print_scores, score_columns
from sr1_jax.paths import local_path
from sr1_jax.terminal import one_line

_ABLATIONS = ("no_mask",)


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("output", "", "Also write the table as Markdown.", flag_values=values)
    names = cli.parse(values, argv, required=(), usage=__doc__, positional=True)
    folders = [local_path(name, "workdir") for name in names]
    output = local_path(values.output, "--output") if values.output else None
    if len(folders) < 2:
        raise ValueError("Name at least two workdirs of finished runs.")
    results = list(zip(names_of(folders), map(read_result, folders)))
    check_same_questions(folders, [result for _, result in results])
    rows = [Row((name,), _scores(result)) for name, result in results]
    first = results[0][1]
    title = f"{first['dev_questions']} questions of {first['dev']}"
    columns = _columns(rows)
    print_scores(rich.get_console(), title, ["run"], rows, columns)
    verdict = one_line(gain(results))
    print(verdict)
    if output:
        output.write_text(f"{markdown(['run'], rows, columns)}\n{verdict}\n")


def names_of(folders: Sequence[Path]) -> list[str]:
    """What runs are called: the names of their folders, or their paths where names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run.

    Raises:
        ValueError: the run has not finished, or was not evaluated; or the file is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the run has not finished; run sr1_jax.train.")
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); run sr1_jax.train again.") from error
    if "after" not in result:
        raise ValueError(f"{path} has no scores: the run had no data.dev to be evaluated on.")
    return result


def check_same_questions(folders: Sequence[Path], results: Sequence[Mapping[str, Any]]) -> None:
    """Refuses runs that were evaluated on different questions.

    Results of earlier versions have no hash of the questions; of them name and number must agree.

    Raises:
        ValueError: naming the first that differs from the first of all.
    """
    first = results[0]
    for folder, other in zip(folders[1:], results[1:]):
        hashed = first.get("questions_sha256") and other.get("questions_sha256")
        keys = ("questions_sha256",) if hashed else ("dev", "dev_questions")
        if all(first.get(key) == other.get(key) for key in keys):
            continue
        ours, theirs = (f"{r['dev_questions']} questions of {r['dev']}" for r in (first, other))
        if ours == theirs:
            theirs = "others of that name and number"
        raise ValueError(
            f"{folder} was evaluated on {theirs}, {folders[0]} on {ours}: scores on different "
            "questions do not compare. Evaluate both on the same (data.dev, seed and "
            "evaluation.final_questions), or with sr1_jax.evaluate."
        )


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


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    after = result["after"]
    return after | {"error": standard_error(after["greedy/em"], result["dev_questions"])}


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Greedy exact match, of all and by hops, its error, that of sampling; then other scores."""
    every = {key: None for row in rows for key in row.scores}
    greedy = score_columns(every, prefix="greedy/", above="greedy")
    exact = [column for column in greedy if column.key.startswith("greedy/em")]
    others = [column for column in greedy if column not in exact]
    sampled = [Column("sampled/em", "sampled\nEM")] if "sampled/em" in every else []
    return [*exact, Column("error", "\n±"), *sampled, *others]


if __name__ == "__main__":
    cli.run(main)
