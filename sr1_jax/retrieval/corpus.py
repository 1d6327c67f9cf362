"""Passages of a corpus, in the form FlashRAG and Search-R1 use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sr1_jax.retrieval.corpus_files import read_chunks


def read_corpus(path: str | os.PathLike) -> Iterator[tuple[str, str, str]]:
    r"""Reads the passages of a corpus, one at a time.

    A row is `{"id", "contents": "\"Title\"\ntext"}` or `{"id", "title", "text"}`. In the first
    form the first line of the contents is the title, less one pair of quotation marks around it;
    contents of a single line have no title. Other keys are ignored; an integer id becomes its
    decimal string.

    Args:
        path: a `.jsonl`, `.jsonl.gz` or `.parquet` file, or the folder of a TFDS data set.

    Returns:
        An iterator of (id, title, text) in the order of the corpus.

    Raises:
        FileNotFoundError: there is no such file (raised at once).
        ValueError: a folder that is no TFDS data set (raised at once); while iterating: malformed
            JSON, a missing or wrongly typed key, an empty passage, a duplicate id, or no passage
            at all; the message names the file and the line or row.
    """
    return _read_passages(path, read_chunks(path))


def parse_passage(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    """(id, title, text) of one row of a corpus; see `read_corpus`.

    Args:
        row: as it was read.
        where: file and line or row, for the message.

    Raises:
        ValueError: a missing or wrongly typed key, or an empty passage.
    """
    passage_id = _check_id(row, where)
    title, text = _title_and_text(row, where)
    if not title.strip() and not text.strip():
        raise ValueError(f"{where}: the passage is empty; fill it in or remove it.")
    return passage_id, title, text


def duplicate_id(where: str, passage_id: str, first: int) -> ValueError:
    """What to raise for an id that an earlier line or row has."""
    return ValueError(
        f"{where}: duplicate id {passage_id!r}, first used on line {first}; "
        "give each passage its own id."
    )


def no_passages(path: str | os.PathLike) -> ValueError:
    """What to raise for a corpus without any."""
    return ValueError(f"{path}: no passages; the corpus is empty.")


def _read_passages(path: str | os.PathLike, chunks: Iterator) -> Iterator[tuple[str, str, str]]:
    line_of: dict[str, int] = {}
    for chunk in chunks:
        for number, row in chunk.rows():
            passage_id, title, text = parse_passage(row, chunk.where(number))
            if passage_id in line_of:
                raise duplicate_id(chunk.where(number), passage_id, line_of[passage_id])
            line_of[passage_id] = number
            yield passage_id, title, text
    if not line_of:
        raise no_passages(path)


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
        return split_contents(_check_text(row, "contents", where))
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


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of a passage that is one string; see `read_corpus`."""
    title, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    # One pair only: a title may itself begin or end with a quotation mark.
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, text
