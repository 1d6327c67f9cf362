"""Questions with their accepted answers, from files in the forms of FlashRAG and Search-R1."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sr1_jax.data import search_r1
from sr1_jax.data.jsonl import read_jsonl

_MISSING = object()
_KEYS = ("id", "question", "golden_answers")


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


def as_question(obj: Any, *, where: str = "question", source: str = "") -> Question:
    """Checks a dict, or an object with the same attributes, and makes it a `Question`.

    Args:
        obj: has `id`, `question`, `golden_answers` and perhaps `metadata`. An integer id becomes
            its decimal string; answers may be a list or a tuple.
        where: what error messages start with, such as `file:line`.
        source: of the question, where neither it nor its id says.

    Raises:
        ValueError: a key is missing, of the wrong type, or empty.
    """

    get = obj.get if isinstance(obj, Mapping) else functools.partial(getattr, obj)
    found = [get(key, _MISSING) for key in _KEYS]
    if _MISSING in found:
        raise ValueError(
            f"{where}: key {_KEYS[found.index(_MISSING)]!r} is missing; a question needs id, "
            "question, golden_answers."
        )
    metadata = get("metadata", None)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"{where}: metadata must be an object, found {metadata!r}.")
    id = _check_id(found[0], where)
    said = obj.source if isinstance(obj, Question) else ""
    return Question(
        id=id,
        question=_check_text(found[1], "question", where),
        golden_answers=_check_answers(found[2], where),
        metadata=dict(metadata or {}),
        source=said or ("" if ":" in id else source),
    )


@dataclass(frozen=True)
class QuestionFile:
    """A file of questions, and what its rows are called.

    Attributes:
        path: JSON lines, plain or gzipped, or `.parquet` in the form of Search-R1.
        source: of its questions; of a parquet file only the rows of this data_source are read.
            "": a file that a user named by its path, whose rows say themselves what they are.
        split: of the source.
    """

    path: Path
    source: str = ""
    split: str = ""


# A file by its path, or with what its rows are called.
AnyFile = str | os.PathLike | QuestionFile


def read_questions(*files: AnyFile) -> list[Question]:
    """Reads question files.

    A line of JSON is `{"id", "question", "golden_answers": [str], "metadata"?}`, as in FlashRAG;
    other keys are ignored. A row of a `.parquet` file is one of Search-R1.

    Args:
        files: `.jsonl`, `.jsonl.gz` or `.parquet`. No id may come twice, in whatever file.

    Returns:
        The questions in the order of the files and of their rows.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a parquet file, and pyarrow is not installed.
        ValueError: malformed JSON, a missing, empty or wrongly typed key, a duplicate id, or no
            question at all; the message names file and line.
    """
    return list(scan_questions(*files))


def scan_questions(*files: AnyFile) -> Iterator[Question]:
    """The questions of files one at a time; arguments and errors as `read_questions`.

    Of all questions only the ids are kept, to find one that comes twice.
    """
    # Line numbers of all files in one row, file by file: a number takes less room than a pair.
    line_of: dict[str, int] = {}
    for number, given in enumerate(files):
        file = given if isinstance(given, QuestionFile) else QuestionFile(Path(given))
        before = len(line_of)
        for line, where, question in _read_file(file):
            first = line_of.setdefault(question.id, number * _MOST_LINES + line)
            if first != number * _MOST_LINES + line:
                raise ValueError(_duplicate(question.id, where, first, files, number))
            yield question
        if len(line_of) == before:
            of = f" of {file.source}" if file.source else ""
            raise ValueError(f"{file.path}: no questions{of}; the file is empty.")


_MOST_LINES = 1 << 40


def _duplicate(id: str, where: str, first: int, files: Sequence[AnyFile], number: int) -> str:
    other, line = divmod(first, _MOST_LINES)
    given = files[other]
    path = given.path if isinstance(given, QuestionFile) else given
    of = "" if other == number else f" of {path}"
    return (
        f"{where}: duplicate id {id!r}, first used on line {line}{of}; give each question its own "
        "id."
    )


def _read_file(file: QuestionFile) -> Iterator[tuple[int, str, Question]]:
    """(line or row from 1, where it is for messages, question) of a file."""
    if file.path.suffix == ".parquet":
        yield from _read_parquet(file)
        return
    stem, source = file.path.name.partition(".")[0], f"{file.path}:"
    for line, row in read_jsonl(file.path):
        where = f"{source}{line}"
        if file.source:
            row = {**row, "id": _full_id(row.get("id"), line - 1, file.source, file.split)}
        yield line, where, as_question(row, where=where, source=stem)


def _read_parquet(file: QuestionFile) -> Iterator[tuple[int, str, Question]]:
    for number, row in search_r1.read_rows(file.path):
        source = row.get("data_source")
        where = f"{file.path}, row {number}"
        if not isinstance(source, str) or not source:
            raise ValueError(f"{where}: data_source must name a set, found {source!r}.")
        if file.source and source != file.source:
            continue
        found = search_r1.as_flashrag(row, where)
        extra = row.get("extra_info")
        split = file.split or (extra.get("split") if isinstance(extra, Mapping) else None)
        found["id"] = _full_id(found.get("id"), number - 1, source, split or file.path.stem)
        yield number, where, as_question(found, where=where)


def _full_id(id: Any, row: int, source: str, split: str) -> Any:
    """`source:split:index` of a row, whose own id, where it has one, gives the index.

    Args:
        id: of the row; None stands for none. What is no id is left for `as_question` to refuse.
        row: its number, from 0.
        source: of the question.
        split: of the source.
    """
    if id is None:
        return f"{source}:{split}:{row}"
    if not isinstance(id, str | int) or isinstance(id, bool) or not str(id).strip():
        return id
    if str(id).startswith(f"{source}:"):
        return id
    # FlashRAG's ids are train_0, dev_0, test_0.
    return f"{source}:{split}:{re.sub(r'^(train|dev|test)_', '', str(id))}"


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
