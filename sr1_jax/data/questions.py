"""Questions with their accepted answers, in the FlashRAG form."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sr1_jax.data.jsonl import read_jsonl

_MISSING = object()


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      id: unique in a run, by convention `source:split:index`.
      question: the text, as written in the source.
      golden_answers: every accepted answer; at least one, none blank.
      metadata: whatever else the source says of the question.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


def as_question(obj: Any, *, where: str = "question") -> Question:
    """Checks a dict, or an object with the same attributes, and makes it a `Question`.

    Args:
      obj: has `id`, `question`, `golden_answers` and perhaps `metadata`. An integer id becomes
        its decimal string; answers may be a list or a tuple.
      where: what error messages start with, such as `file:line`.

    Raises:
      ValueError: a key is missing, of the wrong type, or empty.
    """

    def get(key: str) -> Any:
        if isinstance(obj, Mapping):
            return obj.get(key, _MISSING)
        return getattr(obj, key, _MISSING)

    for key in ("id", "question", "golden_answers"):
        if get(key) is _MISSING:
            raise ValueError(
                f"{where}: key {key!r} is missing; a question needs id, question, golden_answers."
            )
    metadata = get("metadata")
    if metadata is _MISSING or metadata is None:
        metadata = {}
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{where}: metadata must be an object, found {metadata!r}.")
    return Question(
        id=_check_id(get("id"), where),
        question=_check_text(get("question"), "question", where),
        golden_answers=_check_answers(get("golden_answers"), where),
        metadata=dict(metadata),
    )


def read_questions(path: str | os.PathLike) -> list[Question]:
    """Reads a FlashRAG question file.

    Each line is `{"id", "question", "golden_answers": [str], "metadata"?}`; other keys are
    ignored.

    Args:
      path: a `.jsonl` or `.jsonl.gz` file.

    Returns:
      The questions in file order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: malformed JSON, a missing, empty or wrongly typed key, a duplicate id, or no
        question at all; the message names file and line.
    """
    questions: list[Question] = []
    line_of: dict[str, int] = {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        question = as_question(row, where=where)
        if question.id in line_of:
            raise ValueError(
                f"{where}: duplicate id {question.id!r}, first used on line "
                f"{line_of[question.id]}; give each question its own id."
            )
        line_of[question.id] = number
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: no questions; the file is empty.")
    return questions


def _check_id(value: Any, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _check_text(value, "id", where)


def _check_text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a string, found {value!r}.")
    if not value.strip():
        raise ValueError(f"{where}: {key} is empty; fill it in or remove the question.")
    return value


def _check_answers(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: golden_answers must be a list of strings, found {value!r}.")
    if not value:
        raise ValueError(f"{where}: golden_answers is empty; give at least one answer.")
    for answer in value:
        if not isinstance(answer, str):
            raise ValueError(
                f"{where}: golden_answers must be a list of strings, found {answer!r} in it."
            )
        # An empty gold answer would reward an empty prediction.
        if not answer.strip():
            raise ValueError(f"{where}: golden_answers holds a blank answer; remove it.")
    return tuple(value)
