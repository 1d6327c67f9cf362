"""Trajectories in files and on paper: what the policy wrote, what came back, what it was worth.

Of some questions of each step all episodes are kept: step-000012.jsonl has their texts, a line
each, and step-000012.npz beside it their arrays. `read_trajectories` reads both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import replacing, write_whole
from sr1_jax.terminal import CONTROL, printable

# Arrays of a trajectory itself; others come from the learner.
_OWN_ARRAYS = ("ids", "mask", "logp", "segment_rewards")
# From step to step the questions that are kept move on by this share of the distance between two:
# by the golden ratio they come by all places of a step, evenly.
_STRIDE = (math.sqrt(5) - 1) / 2


def spans(trajectory: Trajectory, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Runs of tokens with one mask value: (mask, text), prompt first."""
    edges = np.flatnonzero(np.diff(trajectory.mask)) + 1
    for part in np.split(np.arange(len(trajectory.ids)), edges):
        yield int(trajectory.mask[part[0]]), tokenizer.decode(trajectory.ids[part])


def sampled_rows(trajectories: Sequence[Trajectory], groups: int, step: int) -> list[int]:
    """Which trajectories of a step to keep: all those of some questions.

    The questions are spread evenly over the step, from step to step at other places. Equal in all
    processes.

    Args:
        trajectories: of the step.
        groups: how many questions.
        step: of training.

    Returns:
        Positions in `trajectories`, rising.
    """
    rows_of: dict[str, list[int]] = {}
    for row, trajectory in enumerate(trajectories):
        rows_of.setdefault(trajectory.question_id, []).append(row)
    questions = list(rows_of.values())
    groups = min(groups, len(questions))
    offset = step * _STRIDE % 1
    places = [int((number + offset) * len(questions) / groups) for number in range(groups)]
    return sorted(row for place in places for row in questions[place])


def write_trajectories(
    folder: Path,
    step: int,
    trajectories: Sequence[Trajectory],
    tokenizer: Tokenizer,
    *,
    rows: Sequence[int] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes trajectories of a step, whole or not at all.

    Args:
        folder: made if need be.
        step: of training.
        trajectories: of the step.
        tokenizer: of the policy.
        rows: which to write; None: all.
        arrays: by name, [len(rows), T] each: what the learner made of these rows, such as values
            and advantages, token by token. What lies behind a trajectory's end is padding.

    Returns:
        The file of texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = range(len(trajectories)) if rows is None else rows
    kept = [trajectories[row] for row in rows]
    path = folder / f"step-{step:06d}.jsonl"
    # The texts last: where they are, the arrays are too.
    _write_arrays(path.with_suffix(".npz"), _arrays_of(kept, arrays or {}))
    write_rows(path, [as_row(trajectory, tokenizer) for trajectory in kept])
    return path


def read_trajectories(path: Path) -> list[dict[str, Any]]:
    """What `write_trajectories` wrote.

    Args:
        path: the file of texts, or that of arrays.

    Returns:
        For each trajectory the keys of `as_row` and its arrays: ids, mask, logp, segment_rewards
        and those of the learner, exactly as they were, without padding.
    """
    text = path.with_suffix(".jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    with np.load(path.with_suffix(".npz")) as file:
        for key in file.files:
            name, _, part = key.partition("/")
            if part != "lengths":
                ends = np.cumsum(file[f"{name}/lengths"])
                for row, values in zip(rows, np.split(file[key], ends[:-1])):
                    row[name] = values
    return rows


def _arrays_of(
    trajectories: Sequence[Trajectory], arrays: Mapping[str, np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Every array by name, of each trajectory its own length."""
    found = {
        name: [np.asarray(getattr(t, name)) for t in trajectories]
        for name in _OWN_ARRAYS
        if all(getattr(t, name) is not None for t in trajectories)
    }
    for name, values_BT in arrays.items():
        values_BT = np.asarray(values_BT)
        if values_BT.dtype.kind == "V" or values_BT.dtype.name == "bfloat16":
            values_BT = values_BT.astype(np.float32)  # files know no bfloat16; float32 holds it
        if len(values_BT) != len(trajectories):
            raise ValueError(f"{name} has {len(values_BT)} rows for {len(trajectories)}.")
        found[name] = [row[: len(t.ids)] for row, t in zip(values_BT, trajectories)]
    return found


def _write_arrays(path: Path, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Writes arrays of different lengths: end to end, with the length of each."""
    flat = {}
    for name, parts in arrays.items():
        if parts:
            flat[name] = np.concatenate(parts)
            flat[f"{name}/lengths"] = np.array([len(part) for part in parts], np.int32)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **flat)


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes JSON lines, whole or not at all. All control characters are escaped."""
    lines = (_escaped(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    write_whole(path, "".join(lines))


def _escaped(text: str) -> str:
    """JSON in which the control characters are escaped that JSON itself lets stand."""
    return re.sub(CONTROL, lambda found: f"\\u{ord(found[0]):04x}", text)


def as_row(trajectory: Trajectory, tokenizer: Tokenizer) -> dict[str, Any]:
    """A trajectory as JSON-able data; `spans` lists [mask, text]. Where the policy read passages in
    prompts of their own, `readings` lists what it wrote there, one a call."""
    readings = [getattr(call.record, "reading", None) for call in trajectory.calls]
    written = [reading and reading.text for reading in readings]
    return ({"readings": written} if any(readings) else {}) | {
        "question_id": trajectory.question_id,
        "sample": trajectory.sample,
        "golden_answers": list(trajectory.golden_answers),
        "answer": trajectory.answer,
        "reward": float(trajectory.reward),
        "rewards": {k: float(v) for k, v in trajectory.rewards.items()},
        "trains": trajectory.trains,
        "status": trajectory.status,
        "calls": [[call.tag, call.request] for call in trajectory.calls],
        "searches": trajectory.searches,
        "passage_ids": [[p.id for p in hits] for hits in trajectory.passages],
        "tokens": len(trajectory.ids),
        "policy_tokens": int(trajectory.mask.sum()),
        "spans": [list(span) for span in spans(trajectory, tokenizer)],
    }


def print_trajectories(
    trajectories: Sequence[Trajectory], tokenizer: Tokenizer, console: Console
) -> None:
    """Prints trajectories; the policy's own tokens are bold, all others dim and barred."""
    for trajectory in trajectories:
        golden = " or ".join(trajectory.golden_answers)
        heading = f"reward {trajectory.reward:g}: {trajectory.answer!r}, expected {golden!r}"
        # As Text: in a plain string brackets would be read as markup.
        console.rule(Text(printable(heading)))
        for mask, text in spans(trajectory, tokenizer):
            # A weak policy writes lines and lines of nothing; the files keep them.
            text = re.sub(r"\n\s*\n+", "\n", printable(text))
            if mask:
                console.print(Text(text, style="bold green"))
            else:
                lines = text.strip("\n").splitlines()
                console.print(Text("\n".join(f"│ {line}" for line in lines), style="dim"))
