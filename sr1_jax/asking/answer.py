"""What came of a question, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sr1_jax.environment import Trajectory
from sr1_jax.evaluation.trajectory_log import spans
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.retrieval.base import Passage


class Answered(NamedTuple):
    """What came of a question.

    Attributes:
        question: as it was asked.
        trajectory: of its episode.
        seconds: from the question to the end of the answer.
        first_text_seconds: from the question to the first text of the policy; None: it wrote none.
    """

    question: str
    trajectory: Trajectory
    seconds: float
    first_text_seconds: float | None


def as_data(answered: Answered, tokenizer: Tokenizer) -> dict[str, Any]:
    """An answer as data that JSON can hold; docs/ask.md says what each key is."""
    trajectory, first = answered.trajectory, answered.first_text_seconds
    policy = int(trajectory.mask.sum())
    return {
        "question": answered.question,
        "answer": trajectory.answer,
        "status": trajectory.status,
        "well_formed": trajectory.well_formed,
        "searches": [
            {"query": query, "passages": _passages(hits)}
            for query, hits in zip(trajectory.searches, trajectory.passages)
        ],
        "calls": [{"tool": call.tag, "request": call.request} for call in trajectory.calls],
        "prompt_passages": _passages(trajectory.prompt_passages),
        "spans": [list(span) for span in spans(trajectory, tokenizer)],
        "seconds": round(answered.seconds, 3),
        "first_text_seconds": None if first is None else round(first, 3),
        "tokens": {
            "prompt": trajectory.prompt_length,
            "policy": policy,
            "shown": len(trajectory.ids) - trajectory.prompt_length - policy,
        },
    }


def _passages(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    return [
        {"id": p.id, "title": p.title, "text": p.text, "score": float(p.score)} for p in passages
    ]
