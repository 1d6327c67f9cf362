"""Question rows in the form of Search-R1's parquet files.

A row is `data_source`, `prompt` [{role, content}], `reward_model` {ground_truth {target}} and
`extra_info` {split, index}; the published files also have `id`, `question` and `golden_answers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sr1_jax.data.parquet import column_names, read_batches

_COLUMNS = (
    "data_source", "id", "question", "golden_answers", "reward_model", "extra_info", "metadata",
)  # fmt: skip
# The instruction that stands before the question in every prompt ends so.
_ASKS = "Question:"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads a parquet file of questions, one row at a time.

    Prompts are read only where the file has no column `question`: they are most of it.

    Returns:
        An iterator of (number from 1, row).

    Raises:
        FileNotFoundError, ImportError, ValueError: as `parquet.read_batches`; or the file has
            neither of the columns that a question can be read from.
    """
    there = column_names(path)
    asks = [name for name in ("question", "prompt") if name in there]
    if not asks:
        raise ValueError(
            f"{path}: no questions: it has neither a column question nor a column prompt, but "
            f"{', '.join(there) or 'none at all'}."
        )
    batches = read_batches(path, [*_COLUMNS, asks[0]])
    return _numbered(batches)


def _numbered(batches: Iterator[tuple[list[dict[str, Any]], float]]) -> Iterator[tuple[int, dict]]:
    number = 0
    for rows, _ in batches:
        for row in rows:
            number += 1
            yield number, row


def sources_in(path: Path) -> set[str]:
    """The values of the column data_source; none where the file has no such column."""
    if "data_source" not in column_names(path):
        return set()
    rows = _numbered(read_batches(path, ["data_source"]))
    return {row["data_source"] for _, row in rows if isinstance(row["data_source"], str)}


def as_flashrag(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row in the form that `as_question` reads.

    Args:
        row: of the file.
        where: file and row, for messages.

    Returns:
        `question`, `golden_answers` and `metadata`, and `id` where the row has one, or else the
        index that extra_info has.

    Raises:
        ValueError: there is no question, or no answer, where one is looked for.
    """
    found: dict[str, Any] = {
        "question": row["question"] if "question" in row else _asked(row.get("prompt"), where),
        "golden_answers": _answers(row, where),
        "metadata": row.get("metadata") or {},
    }
    extra = row.get("extra_info")
    index = extra.get("index") if isinstance(extra, Mapping) else None
    for value in (row.get("id"), index):
        if value is not None:
            found["id"] = value
            break
    return found


def _asked(prompt: Any, where: str) -> str:
    """The question that ends the last thing a user says."""
    messages = [m for m in prompt if isinstance(m, Mapping)] if isinstance(prompt, list) else []
    said = [m.get("content") for m in messages if m.get("role") == "user"]
    last = said[-1] if said and isinstance(said[-1], str) else ""
    _, mark, question = last.rpartition(_ASKS)
    if not mark or not question.strip():
        raise ValueError(
            f"{where}: there is no column question, and no prompt whose last user message has the "
            f'question behind "{_ASKS}".'
        )
    return question.strip()


def _answers(row: Mapping[str, Any], where: str) -> Any:
    if row.get("golden_answers") is not None:
        return row["golden_answers"]
    target: Any = row.get("reward_model")
    for key in ("ground_truth", "target"):
        target = target.get(key) if isinstance(target, Mapping) else None
    if target is None:
        raise ValueError(
            f"{where}: no answers: neither golden_answers nor reward_model.ground_truth.target."
        )
    return [target] if isinstance(target, str) else target
