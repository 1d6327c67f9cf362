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
from sr1_jax.evaluation.methods import TEMPLATES, prompt_settings
from sr1_jax.evaluation.scores import SCORES
from sr1_jax.evaluation.tables import Column, Row, print_scores, score_columns
from sr1_jax.evaluation.trajectory_log import as_row, write_rows
from sr1_jax.models.tokenizer import Tokenizer
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
    parts.append(f"questions_{result['questions_sha256'][:8]}")
    changes = result["settings_changed"]
    if changes is None:
        parts.append(f"settings_{_hash(settings)}")
    elif changes:
        text = ",".join(f"{key}={now}" for key, (_, now) in sorted(changes.items()))
        plain = re.fullmatch(r"[\w.,=+-]+", text) and len(text) <= _LONGEST_CHANGES
        parts.append(text if plain else f"settings_{_hash(text)}")
    return ".".join(parts)


def write_result(
    folder: Path,
    name: str,
    result: Mapping[str, Any],
    trajectories: Sequence[Trajectory],
    tokenizer: Tokenizer,
) -> None:
    """Writes the scores of an evaluation, and before them its trajectories where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    if trajectories:
        rows = [as_row(trajectory, tokenizer) for trajectory in trajectories]
        write_rows(folder / f"{name}.trajectories.jsonl", rows)
    temporary = folder / f"{name}.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(folder / f"{name}.json")


def read_results(folder: Path, questions_sha256: str) -> Iterator[dict[str, Any]]:
    """All results on one set of questions; damaged files are left out and reported on stderr."""
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text())
            if result.get("questions_sha256") == questions_sha256:
                yield result
        except (ValueError, AttributeError) as error:
            print(one_line(f"{path} is damaged ({error}) and left out."), file=sys.stderr)


def average(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result in which each of several question files counts the same: a macro average.

    Its standard error is that of a mean of independent means.
    """
    first, count = results[0], len(results)
    scores = {one.key: sum(r[one.key] for r in results) / count for one in SCORES}
    errors = sum(result["em_standard_error"] ** 2 for result in results)
    names = [result["questions"] for result in results]
    same = ("method", "policy", "greedy", "samples", "limit", "settings_changed")
    return {
        "questions": "+".join(names) if len("+".join(names)) < 60 else f"{count}_files",
        "questions_sha256": _hash([result["questions_sha256"] for result in results], 64),
        "files": names,
        "count": sum(result["count"] for result in results),
        **{key: first[key] for key in same},
        "seconds": sum(result["seconds"] for result in results),
        **scores,
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
        rows.append(Row((result["method"], policy, how, str(result["count"])), result))
    title = f"Results on {results[0]['questions']}"
    labels = ["method", "policy", "decode", "n"]
    print_scores(console, title, labels, rows, _columns(results[0]))
    for number, note in enumerate(notes, start=1):
        console.print(f"({number}) {note}", markup=False, highlight=False)


def print_files(
    results: Sequence[Mapping[str, Any]], mean: Mapping[str, Any], console: Console
) -> None:
    """Prints the results of one evaluation by question file, and their average."""
    rows = [Row((result["questions"], str(result["count"])), result) for result in results]
    rows.append(Row(("macro average", str(mean["count"])), mean))
    how = ("greedy" if mean["greedy"] else "sampled") + _times(mean["samples"])
    title = f"{mean['method']}, {mean['policy']}, {how}"
    print_scores(console, title, ["questions", "n"], rows, _columns(mean))
    if mean["settings_changed"]:
        console.print(describe(mean["settings_changed"]), markup=False, highlight=False)


def _columns(scores: Mapping[str, Any]) -> list[Column]:
    first, *others = score_columns(scores)
    return [first, Column("em_standard_error", "±"), *others]


def _times(samples: int) -> str:
    return f" ×{samples}" if samples > 1 else ""


def _flat(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value


def _hash(value: Any, digits: int = 8) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]
