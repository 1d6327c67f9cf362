"""Rejection sampling: of the episodes sampled for a question those that answer it right, as
examples for supervised training.

Source: the baseline of arXiv 2503.09516 (section 4.2, appendix): five episodes a training question
by the instruct model, in the same form of several turns; the correct ones are fine-tuned on.
Correct is exact match. Examples hold the ids as sampled, so nothing is tokenised again, and the
mask of the policy's own tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.trajectory_log import write_rows
from sr1_jax.rewards import exact_match


def correct_of(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories with a right answer, in their order."""
    return [t for t in trajectories if exact_match(t.answer, t.golden_answers)]


def without_repeats(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Trajectories without those whose ids an earlier one has: they teach nothing new."""
    first = {trajectory.ids.tobytes(): trajectory for trajectory in reversed(trajectories)}
    return [t for t in trajectories if first[t.ids.tobytes()] is t]


def examples_of(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Examples to imitate: the correct trajectories, each once.

    Returns:
        For each: id of the question, number of the sample, answer, ids of prompt and response, and
        mask, 1 on each token that the policy sampled.
    """
    return [
        {
            "id": trajectory.question_id,
            "sample": trajectory.sample,
            "answer": trajectory.answer,
            "ids": trajectory.ids.tolist(),
            "mask": trajectory.mask.tolist(),
        }
        for trajectory in without_repeats(correct_of(trajectories))
    ]


def examples_path(folder: Path, name: str) -> Path:
    """The file of examples beside a result."""
    return folder / f"{name}.examples.jsonl"


def write_examples(
    folder: Path, name: str, trajectories: Sequence[Trajectory]
) -> dict[str, int | dict[str, int]]:
    """Writes NAME.examples.jsonl, whole or not at all: a line an example.

    Args:
        folder: made if need be.
        name: of the result that the trajectories belong to.
        trajectories: all that were sampled.

    Returns:
        What the result says of it: `examples` written, `repeated_examples` left out, and
        `examples_by_question`, 0 where no answer was right.
    """
    found = examples_of(trajectories)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(examples_path(folder, name), found)
    kept = Counter(example["id"] for example in found)
    return {
        "examples": len(found),
        "repeated_examples": len(correct_of(trajectories)) - len(found),
        "examples_by_question": {t.question_id: kept[t.question_id] for t in trajectories},
    }
