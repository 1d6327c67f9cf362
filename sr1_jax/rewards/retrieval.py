"""Whether searches brought back what a question needs.

A passage is gold if its title is one of `metadata["supporting_titles"]` of the question, or if it
holds a golden answer. The published reward (arXiv 2505.15117) looks for golden answers alone, as
runs of characters in the normalised text. Two deviations:

- Whole words are compared: "art" is not found in "party".
- "yes" and "no" stand in nearly every passage and say nothing of it: for such answers, and for
  those that normalise to nothing, only titles count.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from sr1_jax.rewards.matching import CLOSED_ANSWERS, normalize_answer


def gold_segment(trajectory: Any, question: Any) -> int | None:
    """The segment whose search was the first to bring back a gold passage; None if none did.

    Passages that stand in the prompt were not searched for by the policy and do not count.

    Args:
        trajectory: its `calls`; those with passages on their record are searches.
        question: its `golden_answers` and `metadata`.
    """
    titles = {plain_title(title) for title in supporting_titles(question)}
    answers = open_answers(question)
    for segment, passage in found_passages(trajectory):
        if plain_title(passage.title) in titles or holds_any(passage, answers):
            return segment
    return None


def open_answers(question: Any) -> set[str]:
    """The golden answers of a question, normalised, less those that stand in nearly every text."""
    return set(map(normalize_answer, question.golden_answers)) - {*CLOSED_ANSWERS, ""}


def holds_any(passage: Any, answers: Iterable[str]) -> bool:
    """Whether a normalised answer stands in a passage, in whole words of the normalised text."""
    words = f" {normalize_answer(f'{passage.title} {passage.text}')} "
    return any(f" {answer} " in words for answer in answers)


def supporting_titles(question: Any) -> list[str]:
    """The titles that a question's metadata names, if it names any.

    Raises:
        ValueError: they are no list of strings; names the question.
    """
    titles = question.metadata.get("supporting_titles") or []
    good = isinstance(titles, (list, tuple)) and all(isinstance(title, str) for title in titles)
    if not good:
        raise ValueError(
            f"Question {question.id}: metadata.supporting_titles must be a list of strings, not "
            f"{titles!r}."
        )
    return list(titles)


def found_passages(trajectory: Any) -> Iterator[tuple[int, Any]]:
    """Every passage that the policy's searches brought back, with the segment that asked."""
    for call in trajectory.calls:
        for passages in getattr(call.record, "passages", ()):
            for passage in passages:
                yield call.segment, passage


def queries_of(call: Any) -> Iterable[str] | None:
    """The queries of a call; None for one that was no search."""
    return getattr(call.record, "queries", None)


def plain_title(title: str) -> str:
    """A title for comparison; dumps of Wikipedia write some in quotes."""
    plain = unicodedata.normalize("NFC", title).casefold().strip().strip('"')
    return " ".join(plain.split())
