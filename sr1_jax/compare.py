"""One table of several finished runs, and how sure their differences are.

    python -m sr1_jax.compare runs/demo runs/demo_direct runs/demo_rag … [--output=table.md]
    python -m sr1_jax.compare runs/a/eval/nq.search.step_500.….json runs/b/eval/nq.rag.….json

Reads result.json of each workdir, and dev_trajectories.jsonl beside it; or results of
sr1_jax.evaluate, and the scores beside them. All are on the same questions; the first is compared
with the best of the others, and exact match with each, question by question. A run whose folder
name ends in an ablation (no_mask) stands beside the baselines and does not count as one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich
from absl import flags

from sr1_jax import cli
from sr1_jax.data.jsonl import read_jsonl
from sr1_jax.evaluation.grid import difference_text
from sr1_jax.evaluation.intervals import Values, bootstrap_macro, paired_macro_difference
from sr1_jax.evaluation.results import HALF_WIDTH_MEANING
from sr1_jax.evaluation.score_table import read_scores, score_path
from sr1_jax.evaluation.tables import (
    HALF_WIDTH,
    Column,
    Row,
    markdown,
    print_scores,
    score_columns,
)
from sr1_jax.paths import output_or_none
from sr1_jax.rewards import exact_match
from sr1_jax.terminal import one_line
from sr1_jax.workdirs import run_or_result

_ABLATIONS = ("no_mask",)


class Compared(NamedTuple):
    """A result that is compared.

    Attributes:
        path: of the workdir, or of the result's file.
        name: in the table.
        result: as result.json has it.
        exact: exact match by question of each set, greedy where the run has that; None where it is
            not known. A run has one set, an average over sets several.
    """

    path: Path
    name: str
    result: Mapping[str, Any]
    exact: list[Values] | None


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("output", "", "Also write the table as Markdown.", flag_values=values)
    names = cli.parse(values, argv, required=(), usage=__doc__, positional=True)
    if len(names) < 2:
        raise ValueError("Name at least two workdirs of finished runs, or files of results.")
    with output_or_none(values.output, "--output") as output:
        _compare([run_or_result(name) for name in names], output)


def _compare(paths: Sequence[Path], output: Path | None) -> None:
    """Prints the table and, where there is an output, writes it."""
    found = [read_result(path) for path in paths]
    check_same_questions(paths, found)
    every = [
        Compared(path, name, result, read_exact(path, result))
        for path, name, result in zip(paths, names_of(paths, found), found)
    ]
    rows = [Row((one.name,), _scores(one)) for one in every]
    title = f"{found[0]['dev_questions']} questions of {found[0]['dev']}"
    columns = _columns(rows)
    notes = [f"±: {HALF_WIDTH_MEANING}."] if any(one.exact for one in every) else []
    print_scores(rich.get_console(), title, ["run"], rows, columns)
    verdicts = [*notes, *differences(every), one_line(gain([(c.name, c.result) for c in every]))]
    print("\n".join(verdicts))
    if output:
        text = "".join(f"\n{verdict}\n" for verdict in verdicts)
        output.write_text(f"{markdown(['run'], rows, columns)}{text}")


def names_of(paths: Sequence[Path], found: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What results are called: runs by their folders, evaluations by run, method and policy; by
    their paths where these names are equal."""
    names = [path.resolve().name for path in paths]
    for number, (path, result) in enumerate(zip(paths, found)):
        if path.is_file():
            run = path.resolve().parent.parent.name
            names[number] = f"{run}, {result['method']}, {result['policy']}"
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a run, or the result of an evaluation in the same form.

    Args:
        path: the workdir of the run, or the file of the evaluation.

    Raises:
        ValueError: the run has not finished, or was not evaluated; or the file is damaged.
    """
    if path.is_file():
        return _of_evaluation(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such workdir, nor file of results.")
    path = path / "result.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the run has not finished; run sr1_jax.train.")
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); run sr1_jax.train again.") from error
    if "after" not in result:
        raise ValueError(f"{path} has no scores: the run had no data.dev to be evaluated on.")
    return result


def _of_evaluation(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        way = "greedy" if result["greedy"] else "sampled"
        scores = {key: value for key, value in result.items() if _is_number(value)}
        return {
            "dev": result["questions"],
            "dev_questions": result["count"],
            "questions_sha256": result["questions_sha256"],
            "after": {f"{way}/{key}": value for key, value in scores.items()},
            **{key: result[key] for key in ("method", "policy")},
            "results": result.get("results", [path.name.removesuffix(".json")]),
        }
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no result of sr1_jax.evaluate ({error!r}): name a .json file of DIR/eval, "
            "or the workdir of a run."
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_exact(path: Path, result: Mapping[str, Any]) -> list[Values] | None:
    """Exact match by question of each set; None, said on stderr, where it is not known.

    Args:
        path: see `read_result`.
        result: what that returned.
    """
    try:
        if path.is_file():
            files = [path.with_name(f"{name}.json") for name in result["results"]]
            return [read_scores(score_path(file)).values("em") for file in files]
        exact = {
            row["question_id"]: np.array([exact_match(row["answer"], row["golden_answers"])], float)
            for _, row in read_jsonl(path / "dev_trajectories.jsonl")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        cli.notice(f"No intervals for {path}: {error}")
        return None
    mean = float(np.mean([value[0] for value in exact.values()])) if exact else math.nan
    if not math.isclose(mean, _exact_match_of(result), abs_tol=1e-9):
        cli.notice(f"No intervals for {path}: dev_trajectories.jsonl is not that of result.json.")
        return None
    return [exact]


def differences(every: Sequence[Compared]) -> list[str]:
    """What the first is better by than each other, in sentences.

    Raises:
        ValueError: two results are on different questions.
    """
    first, *others = every
    if first.exact is None:
        return []
    lines = []
    for other in others:
        if other.exact is None:
            continue
        try:
            difference = paired_macro_difference(first.exact, other.exact)
        except ValueError as error:
            raise ValueError(
                f"{other.path} was evaluated on other questions than {first.path}: {error}"
            ) from error
        lines.append(one_line(f"{first.name} less {other.name}: {difference_text(difference)}"))
    return ["Differences in exact match, question by question:", *lines] if lines else []


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
    score = _exact_match_of(first)
    baselines = [
        (_exact_match_of(result), other)
        for other, result in others
        if not other.endswith(_ABLATIONS)
    ]
    if not baselines:
        return f"{name} {score:.3f}; no baseline is among the others."
    best, best_name = max(baselines)
    relative = f"{(score / best - 1):+.0%}" if best else "no finite gain"
    return f"{name} {score:.3f} against {best:.3f} of {best_name}, the best baseline: {relative}."


def _exact_match_of(result: Mapping[str, Any]) -> float:
    """Greedy, or of an evaluation that only sampled, sampled."""
    after = result["after"]
    return after["greedy/em"] if "greedy/em" in after else after["sampled/em"]


def _scores(one: Compared) -> dict[str, Any]:
    half = {HALF_WIDTH: bootstrap_macro(one.exact).half_width} if one.exact else {}
    return one.result["after"] | half


def _columns(rows: Sequence[Row]) -> list[Column]:
    """Greedy exact match, of all and by hops, its interval, that of sampling; then other scores."""
    every = {key: None for row in rows for key in row.scores}
    greedy = score_columns(every, prefix="greedy/", above="greedy") if "greedy/em" in every else []
    exact = [column for column in greedy if column.key.startswith("greedy/em")]
    others = [column for column in greedy if column not in exact]
    sampled = [Column("sampled/em", "sampled\nEM")] if "sampled/em" in every else []
    half = [Column(HALF_WIDTH, "\n±")] if HALF_WIDTH in every else []
    return [*exact, *half, *sampled, *others]


if __name__ == "__main__":
    cli.run(main)
