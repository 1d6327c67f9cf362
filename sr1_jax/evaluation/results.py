"""Results of evaluations in files: a name for each, and tables of those that may be compared."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.intervals import LEVEL, Interval, intervals_of
from sr1_jax.evaluation.methods import TEMPLATES, prompt_settings
from sr1_jax.evaluation.score_table import ScoreTable, score_path, write_scores
from sr1_jax.evaluation.tables import HALF_WIDTH, Column, Row, print_scores, score_columns
from sr1_jax.evaluation.trajectory_log import as_row, write_rows
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import write_whole
from sr1_jax.terminal import one_line

# Settings that decide what a question is answered with.
_SECTIONS = ("protocol", "environment", "retrieval", "rollout")
_WEIGHTS = ("base.path", "base.workdir", "lora.path")
# Settings of these sections that only change the speed: results differ by rounding alone.
SPEED = (
    "rollout.slots", "rollout.decode_steps", "rollout.decode_sizes", "rollout.extend_buckets",
    "rollout.turnover", "rollout.share_prefixes", "rollout.deterministic", "rollout.profile",
)  # fmt: skip
_SAMPLING = ("rollout.temperature", "rollout.top_p", "rollout.top_k")
_LONGEST_CHANGES = 60

MACRO = "macro average"
HALF_WIDTH_MEANING = f"half the {LEVEL:.0%} interval of EM, drawn by question"

# Setting -> (its value in the run, its value now).
Changes = Mapping[str, tuple[Any, Any]]


def answering_settings(config: Mapping[str, Any], method: str, *, greedy: bool) -> dict[str, Any]:
    """The settings that answers depend on, by dotted key.

    Args:
        config: of a run, as plain values.
        method: how questions are answered; the prompts of other methods are left out.
        greedy: whether settings of sampling are left out.
    """
    unused = {*SPEED, *(_SAMPLING if greedy else ())}
    used = prompt_settings(method)
    unused |= {f"protocol.{key}" for key in (*TEMPLATES, "template_path") if key not in used}
    found = {} if greedy else {"seed": config.get("seed")}
    return found | {
        key: value
        for section in (*_SECTIONS, "base", "lora")
        for key, value in _flat(config.get(section, {}), f"{section}.")
        if key in _WEIGHTS or (section in _SECTIONS and key not in unused)
    }


def changed_settings(run: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Settings with different values.

    Keys that only one side has count in the open sections, where users add their own. Elsewhere
    they came or went with a version of this package.
    """
    compared = [key for key in {**run, **now} if (key in run and key in now) or ".options." in key]
    return {key: (run.get(key), now.get(key)) for key in compared if run.get(key) != now.get(key)}


def describe(changes: Changes) -> str:
    """Changes in words: key=now (run: before), …"""
    return one_line(", ".join(f"{k}={now!r} (run: {run!r})" for k, (run, now) in changes.items()))


def result_name(result: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A file name that differs wherever results may.

    Args:
        result: see `evaluate`. Its settings_changed become part of the name.
        settings: of `answering_settings`. A hash of them becomes part of the name where
            settings_changed is None: there is no run that they could differ from.
    """
    parts = [result["questions"], result["method"], result["policy"].replace(" ", "_")]
    parts.append("greedy" if result["greedy"] else "sampled")
    if result["samples"] > 1:
        parts.append(f"samples_{result['samples']}")
    if result["limit"]:
        parts.append(f"limit_{result['limit']}")
    if judge := result.get("judge_model"):
        parts.append(f"judge_{re.sub(r'[^A-Za-z0-9_-]+', '-', judge)}")
    parts.append(f"questions_{result['questions_sha256'][:8]}")
    changes = result["settings_changed"]
    if changes is None:
        parts.append(f"settings_{digest(settings)}")
    elif changes:
        text = ",".join(f"{key}={now}" for key, (_, now) in sorted(changes.items()))
        plain = re.fullmatch(r"[\w.,=+-]+", text) and len(text) <= _LONGEST_CHANGES
        parts.append(text if plain else f"settings_{digest(text)}")
    return ".".join(parts)


def write_result(
    folder: Path,
    name: str,
    result: Mapping[str, Any],
    trajectories: Sequence[Trajectory] = (),
    tokenizer: Tokenizer | None = None,
    table: ScoreTable | None = None,
) -> None:
    """Writes the result of an evaluation; before it, where there are any, its trajectories and
    their scores."""
    folder.mkdir(parents=True, exist_ok=True)
    if trajectories:
        rows = [as_row(trajectory, tokenizer) for trajectory in trajectories]
        for number, row in enumerate(rows):
            row["scores"] = table.of_trajectory(number) if table else {}
        write_rows(folder / f"{name}.trajectories.jsonl", rows)
    if table:
        write_scores(score_path(folder / f"{name}.json"), table)
    write_whole(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")


def scores_with_intervals(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    """The scores of one set, or the average in which each of several sets counts the same.

    Returns:
        Each score that every set has by its key; intervals, [low, high] of each, and
        interval_level.
    """
    found = intervals_of([table.all_values() for table in tables])
    intervals = {key: [interval.low, interval.high] for key, interval in found.items()}
    means = {key: interval.mean for key, interval in found.items()}
    return means | {"intervals": intervals, "interval_level": LEVEL}


def interval_in(result: Mapping[str, Any], key: str = "em") -> Interval | None:
    """The interval of a score of a result; None in results of earlier versions."""
    ends = result.get("intervals", {}).get(key)
    return Interval(result[key], *ends) if ends else None


def read_results(folder: Path, questions_sha256: str) -> Iterator[dict[str, Any]]:
    """All results on one set of questions; damaged files are left out and reported on stderr."""
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            if result.get("questions_sha256") == questions_sha256:
                yield result
        except (ValueError, AttributeError) as error:
            print(one_line(f"{path} is damaged ({error}) and left out."), file=sys.stderr)


def average(
    results: Sequence[Mapping[str, Any]], tables: Sequence[ScoreTable], files: Sequence[str]
) -> dict[str, Any]:
    """The result in which each of several question files counts the same: a macro average.

    Its standard error is that of a mean of independent means.

    Args:
        results: of the files, by one method.
        tables: the scores of each.
        files: names of the results, less their endings.
    """
    first, count = results[0], len(results)
    errors = sum(result["em_standard_error"] ** 2 for result in results)
    names = [result["questions"] for result in results]
    same = ("method", "policy", "greedy", "samples", "limit", "settings_changed", "judge_model")
    return {
        "questions": joined(names, "files"),
        "questions_sha256": digest([result["questions_sha256"] for result in results], 64),
        "files": names,
        "results": list(files),
        "count": sum(result["count"] for result in results),
        **{key: first[key] for key in same if key in first},
        "seconds": sum(result["seconds"] for result in results),
        **scores_with_intervals(tables),
        "em_standard_error": errors**0.5 / count,
    }


def print_results(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints all results on one set of questions."""
    rows, notes = [], []
    for result in results:
        policy, changes = result["policy"], describe(result["settings_changed"] or {})
        if changes:
            notes += [] if changes in notes else [changes]
            policy += f" ({notes.index(changes) + 1})"
        how = ("greedy" if result["greedy"] else "sampled") + _times(result["samples"])
        rows.append(as_table_row((result["method"], policy, how, str(result["count"])), result))
    title = f"Results on {results[0]['questions']}"
    labels = ["method", "policy", "decode", "n"]
    print_scores(console, title, labels, rows, columns_of(rows))
    print_meaning_of_half_width(console)
    for number, note in enumerate(notes, start=1):
        console.print(f"({number}) {note}", markup=False, highlight=False)


def print_files(
    results: Sequence[Mapping[str, Any]], mean: Mapping[str, Any], console: Console
) -> None:
    """Prints the results of one evaluation by question file, and their average."""
    every = [*zip((result["questions"] for result in results), results), (MACRO, mean)]
    rows = [as_table_row((name, str(result["count"])), result) for name, result in every]
    how = ("greedy" if mean["greedy"] else "sampled") + _times(mean["samples"])
    title = f"{mean['method']}, {mean['policy']}, {how}"
    print_scores(console, title, ["questions", "n"], rows, columns_of(rows))
    print_meaning_of_half_width(console)
    if mean["settings_changed"]:
        console.print(describe(mean["settings_changed"]), markup=False, highlight=False)


def as_table_row(labels: tuple[str, ...], result: Mapping[str, Any]) -> Row:
    """A row of a table, with half the width of the interval of exact match."""
    interval = interval_in(result)
    half = {HALF_WIDTH: interval.half_width} if interval else {}
    return Row(labels, {**result, **half})


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Columns of all scores that any row has."""
    first, *others = score_columns({key: None for row in rows for key in row.scores})
    return [first, Column(HALF_WIDTH, "±"), *others]


def print_meaning_of_half_width(console: Console) -> None:
    """Says what ± is."""
    console.print(f"±: {HALF_WIDTH_MEANING}.", style="dim", highlight=False)


def _times(samples: int) -> str:
    return f" ×{samples}" if samples > 1 else ""


def _flat(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value


def joined(names: Sequence[str], what: str) -> str:
    """Names in a file name: all of them, or how many they are."""
    return "+".join(names) if len("+".join(names)) < 60 else f"{len(names)}_{what}"


def digest(value: Any, digits: int = 8) -> str:
    """The beginning of the hash of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]
