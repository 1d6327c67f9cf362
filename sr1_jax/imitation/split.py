"""Which questions get traces: a share of them by hash, so that the rest stays untouched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sr1_jax.data.jsonl import read_jsonl
from sr1_jax.data.questions import Question, as_question
from sr1_jax.imitation.wording import as_key
from sr1_jax.paths import replacing


def is_taken(text: str, share: float) -> bool:
    """Whether a question is among the share that gets traces.

    It depends on the question's words alone: not on its file, its id or any seed. So the same
    question of two sources is on one side, and a larger share holds a smaller one.

    Args:
        text: of the question.
        share: from 0 to 1.
    """
    digest = hashlib.sha256(as_key(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The questions, of those with the same words the first."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(as_key(question.question), question)
    return list(first.values())


def write_rest(
    paths: Sequence[Path],
    taken: Iterable[Question],
    out: Path,
    among: Callable[[Sequence[Question]], Iterable[Question]] = list,
) -> int:
    """Writes the questions that are not taken to a question file, with all their keys.

    Args:
        paths: question files, already read without error.
        taken: those that get traces; others with the same words are not written either.
        out: the file; whole or not at all.
        among: which of those that are left are written.

    Returns:
        How many they are.
    """
    used = {as_key(question.question) for question in taken}
    rows = [
        (as_question(row, where=f"{path}:{number}"), row)
        for path in paths
        for number, row in read_jsonl(path)
    ]
    rest = [(question, row) for question, row in rows if as_key(question.question) not in used]
    kept = {as_key(question.question) for question in among([question for question, _ in rest])}
    lines = [
        json.dumps(row, ensure_ascii=False)
        for question, row in rest
        if as_key(question.question) in kept
    ]
    write_lines(out, lines)
    return len(lines)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines of text, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
