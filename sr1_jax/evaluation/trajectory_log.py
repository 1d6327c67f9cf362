"""Trajectories in files and on paper: what the policy wrote, what came back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.tokenizer import Tokenizer

_KEPT_A_STEP = 8


def spans(trajectory: Trajectory, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Runs of tokens with one mask value: (mask, text), prompt first."""
    edges = np.flatnonzero(np.diff(trajectory.mask)) + 1
    for part in np.split(np.arange(len(trajectory.ids)), edges):
        yield int(trajectory.mask[part[0]]), tokenizer.decode(trajectory.ids[part])


def write_trajectories(
    folder: Path, step: int, trajectories: Sequence[Trajectory], tokenizer: Tokenizer
) -> None:
    """Writes the first few trajectories of a step as JSON lines: texts with their mask."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [as_row(trajectory, tokenizer) for trajectory in trajectories[:_KEPT_A_STEP]]
    write_rows(folder / f"step-{step:06d}.jsonl", rows)


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes JSON lines, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def as_row(trajectory: Trajectory, tokenizer: Tokenizer) -> dict:
    """A trajectory as JSON-able data; `spans` lists [mask, text]."""
    return {
        "question_id": trajectory.question_id,
        "sample": trajectory.sample,
        "golden_answers": list(trajectory.golden_answers),
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "status": trajectory.status,
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
        console.rule(Text(heading))
        for mask, text in spans(trajectory, tokenizer):
            if mask:
                console.print(Text(text, style="bold green"))
            else:
                lines = text.strip("\n").splitlines()
                console.print(Text("\n".join(f"│ {line}" for line in lines), style="dim"))
