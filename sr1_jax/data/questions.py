"""Questions with their accepted answers, in the FlashRAG form."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
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
        source: the data set it is from: its id up to the first colon, or, of an id without one, the
            name of its file less the endings; "" where neither is known.
    """

    id: str
    question: str
    golden_answers: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    source: str = field(default="", compare=False)

    def __post_init__(self):
        if not self.source:
            source, colon, _ = str(self.id).partition(":")
            object.__setattr__(self, "source", source if colon else "")


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
        source=obj.source if isinstance(obj, Question) else "",
    )


def read_questions(*paths: str | os.PathLike) -> list[Question]:
    """Reads FlashRAG question files.

    Each line is `{"id", "question", "golden_answers": [str], "metadata"?}`; other keys are
    ignored.

    Args:
        paths: `.jsonl` or `.jsonl.gz` files. No id may come twice, in whatever file.

    Returns:
        The questions in the order of the files and of their lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: malformed JSON, a missing, empty or wrongly typed key, a duplicate id, or no
            question at all; the message names file and line.
    """
    questions: list[Question] = []
    line_of: dict[str, tuple[str | os.PathLike, int]] = {}
    for path in paths:
        stem = Path(path).name.partition(".")[0]
        before = len(questions)
        for number, row in read_jsonl(path):
            where = f"{path}:{number}"
            question = as_question(row, where=where)
            if question.id in line_of:
                first_path, line = line_of[question.id]
                other = "" if first_path == path else f" of {first_path}"
                raise ValueError(
                    f"{where}: duplicate id {question.id!r}, first used on line {line}{other}; "
                    "give each question its own id."
                )
            line_of[question.id] = path, number
            questions.append(question if question.source else replace(question, source=stem))
        if len(questions) == before:
            raise ValueError(f"{path}: no questions; the file is empty.")
    return questions


def stratified(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Draws questions so that each source has the share that it has of all.

    What is drawn depends on the questions and the seed, not on their order, nor on that of their
    files. More, or as many, as there are gives all, as they stand.

    Args:
        questions: with different ids.
        count: how many to draw; 0 or more.
        seed: of the draw.

    Returns:
        `count` questions, mixed.
    """
    if count >= len(questions):
        return list(questions)

    def rank(question: Question) -> str:
        # A hash is a draw that knows nothing of the other questions.
        return hashlib.sha256(f"{seed} {question.id}".encode()).hexdigest()

    by_source: dict[str, list[Question]] = {}
    for question in sorted(questions, key=rank):
        by_source.setdefault(question.source, []).append(question)
    drawn = []
    for source, share in _shares({s: len(q) for s, q in by_source.items()}, count).items():
        drawn += by_source[source][:share]
    return sorted(drawn, key=rank)


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` split in proportion to `sizes`, whole numbers by largest remainder."""
    total = sum(sizes.values())
    shares = {name: count * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), name))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


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
