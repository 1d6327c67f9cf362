"""Passage files in the form FlashRAG and Search-R1 use."""

import os
from collections.abc import Iterator
from typing import Any

from sr1_jax.data.jsonl import read_jsonl


def read_corpus(path: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
    r"""Reads the passages of a corpus, one at a time.

    A line is `{"id", "contents": "\"Title\"\ntext"}` or `{"id", "title", "text"}`. In the first
    form the first line of the contents is the title, less one pair of quotation marks around it;
    contents of a single line have no title. Other keys are ignored; an integer id becomes its
    decimal string.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.

    Returns:
        An iterator of (id, title, text) in file order.

    Raises:
        FileNotFoundError: there is no such file (raised at once).
        ValueError: while iterating: malformed JSON, a missing or wrongly typed key, an empty
            passage, a duplicate id, or no passage at all; the message names file and line.
    """
    return _read_passages(path, read_jsonl(path))


def _read_passages(
    path: str | os.PathLike, rows: Iterator[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[str, str, str]]:
    line_of: dict[str, int] = {}
    for number, row in rows:
        where = f"{path}:{number}"
        passage_id = _check_id(row, where)
        if passage_id in line_of:
            raise ValueError(
                f"{where}: duplicate id {passage_id!r}, first used on line "
                f"{line_of[passage_id]}; give each passage its own id."
            )
        line_of[passage_id] = number
        title, text = _title_and_text(row, where)
        if not title.strip() and not text.strip():
            raise ValueError(f"{where}: the passage is empty; fill it in or remove the line.")
        yield passage_id, title, text
    if not line_of:
        raise ValueError(f"{path}: no passages; the file is empty.")


def _check_id(row: dict[str, Any], where: str) -> str:
    if "id" not in row:
        raise ValueError(f"{where}: key 'id' is missing; give each passage its own id.")
    value = row["id"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: id must be a string that is not empty, found {value!r}.")
    return value


def _title_and_text(row: dict[str, Any], where: str) -> tuple[str, str]:
    if "contents" in row:
        return _split_contents(_check_text(row, "contents", where))
    if "text" in row:
        title = _check_text(row, "title", where) if "title" in row else ""
        return title, _check_text(row, "text", where)
    raise ValueError(
        f"{where}: key 'contents' is missing; a passage needs id and contents, "
        "or id, title and text."
    )


def _check_text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"{where}: {key} must be a string, found {row[key]!r}.")
    return row[key]


def _split_contents(contents: str) -> tuple[str, str]:
    title, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    # One pair only: a title may itself begin or end with a quotation mark.
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text
