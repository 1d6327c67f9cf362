"""Corpora on disk as chunks of rows: JSON lines, parquet, TFDS folders.

A chunk is what one process indexes at a time. Where chunks end follows from the corpus alone, so
that an index does not depend on how many processes built it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sr1_jax.data.jsonl import parse_line, read_blocks, read_jsonl
from sr1_jax.data.parquet import read_batches
from sr1_jax.paths import replacing, sha256_of
from sr1_jax.remembered import remembered_sha256

CHUNK_BYTES = 24 << 20
_KEYS = ("id", "contents", "title", "text")  # of a passage
_BLOCK = 1 << 20  # characters read at a time of a list
_BATCH_ROWS = 1024  # read at a time from TFDS
_FORMS = "give a .jsonl, .jsonl.gz or .parquet file, or the folder of a TFDS data set"


@dataclass(frozen=True)
class Chunk:
    """Rows of a corpus that follow each other.

    Attributes:
        source: of what a row's number is put behind, for messages: "corpus.jsonl:".
        first: number of the first row, from 1.
        content: lines of JSON not yet parsed, or rows.
        share: of the corpus that is read when this chunk is, 0 to 1.
    """

    source: str
    first: int
    content: list[bytes] | list[dict[str, Any]]
    share: float

    def where(self, number: int) -> str:
        """Names a row, for messages."""
        return f"{self.source}{number}"

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, row) of each row; blank lines are skipped.

        Raises:
            ValueError: while iterating: a line that is no JSON object.
        """
        for number, item in enumerate(self.content, self.first):
            if not isinstance(item, bytes):
                yield number, item
            elif not item.isspace():
                yield number, parse_line(item, self.where(number))


def read_chunks(path: str | os.PathLike, size: int | None = None) -> Iterator[Chunk]:
    """Reads a corpus chunk by chunk.

    Args:
        path: a file of JSON lines, plain or gzipped whatever its name, a `.parquet` file, or a
            folder that TFDS prepared as ArrayRecord files (all its splits, in order of name).
        size: bytes of text after which a chunk ends; by default `CHUNK_BYTES`.

    Raises:
        FileNotFoundError: there is no such file (raised at once).
        ValueError: a folder without a TFDS data set (raised at once); while iterating: a damaged
            file.
        ImportError: a parquet file, and pyarrow is not installed (raised at once).
    """
    path = Path(path)
    size = size or CHUNK_BYTES
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {_FORMS}.")
    if path.is_dir():
        if not _is_tfds(path):
            raise ValueError(f"{path} is a folder without a TFDS data set; {_FORMS}.")
        return _group(_read_tfds(path), f"{path}, record ", size)
    if path.suffix == ".parquet":
        return _group(read_batches(path, _KEYS), f"{path}, row ", size)
    return (
        Chunk(f"{path}:", first, lines, share) for first, lines, share in read_blocks(path, size)
    )


def read_rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads any rows, one at a time: JSON lines, parquet, or a `.json` file that is one list.

    Returns:
        An iterator of (file and line or row for messages, row with all its keys).

    Raises:
        FileNotFoundError: there is no such file (raised at once).
        ValueError: while iterating: a damaged file, or a row that is no object.
        ImportError: a parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .json, .jsonl or .parquet file.")
    if path.suffix == ".json":
        return _read_list(path)
    if path.suffix == ".parquet":
        return _numbered(read_batches(path), f"{path}, row ")
    return ((f"{path}:{number}", row) for number, row in read_jsonl(path))


def check_new_corpus(path: Path) -> None:
    """Refuses a file that a corpus cannot be written to.

    Raises:
        ValueError: it is there, or is no JSON-lines file by its name.
    """
    if path.exists():
        raise ValueError(f"{path} is there already; name another file, or remove it.")
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path}: name a .jsonl or .jsonl.gz file.")


@contextlib.contextmanager
def writing_corpus(path: Path) -> Iterator[BinaryIO]:
    """A file for JSON lines, gzipped if its name says so, which appears when it is complete; its
    folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with replacing(path) as temporary, opened(temporary, "wb") as file:
        yield file


def corpus_sha256(path: str | os.PathLike, memory: Path | None = None) -> str:
    """Hash of a corpus: of the file, or of the names and hashes of the files in the folder.

    Args:
        path: of the corpus.
        memory: a file in which hashes are remembered; a file of the corpus that it knows, with the
            size and the time of its last change, is not read again. None: every file is read.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256_of(path) if memory is None else remembered_sha256(path, memory)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        digest.update(f"{file.name} {corpus_sha256(file, memory)}\n".encode())
    return digest.hexdigest()


# Batches of rows, with the share of the corpus read so far.
_Batches = Iterator[tuple[list[dict[str, Any]], float]]


def _group(batches: _Batches, source: str, size: int) -> Iterator[Chunk]:
    first, rows, held, share = 1, [], 0, 0.0
    for batch, share in batches:
        for row in batch:
            rows.append(row)
            held += sum(len(value) for value in row.values() if isinstance(value, str))
            if held >= size:
                yield Chunk(source, first, rows, share)
                first, rows, held = first + len(rows), [], 0
    if rows:
        yield Chunk(source, first, rows, share)


def _numbered(batches: _Batches, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch, _ in batches:
        for row in batch:
            number += 1
            yield f"{source}{number}", row


def _read_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of a file that is one list of JSON, without holding all of them."""
    decode, skip = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*").match
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(_BLOCK).lstrip()
        if start and start[0] != "[":
            raise ValueError(f"{path}: not a list of JSON; write JSON lines as .jsonl.")
        text, number, ended = start[1:], 1, not start
        while not ended:
            place, more = 0, file.read(_BLOCK)
            text += more
            # Up to the item that goes on in the next block.
            while (place := skip(text, place).end()) < len(text) and text[place] != "]":
                where = f"{path}, item {number}"
                try:
                    row, place = decode(text, place)
                except json.JSONDecodeError as error:
                    if more:
                        break
                    raise ValueError(f"{where}: malformed JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{where}: expected an object, found {type(row).__name__}.")
                yield where, row
                number += 1
            ended, text = text.startswith("]", place), text[place:]
            if not more and not ended:
                raise ValueError(f"{path}: cut short after item {number - 1}; get it again.")


def _is_tfds(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def _read_tfds(folder: Path) -> _Batches:
    import tensorflow_datasets as tfds

    sources = tfds.builder_from_directory(folder).as_data_source()
    total = max(1, sum(len(source) for source in sources.values()))
    done = 0
    for split in sorted(sources):
        source = sources[split]
        for begin in range(0, len(source), _BATCH_ROWS):
            rows = [source[i] for i in range(begin, min(begin + _BATCH_ROWS, len(source)))]
            done += len(rows)
            yield [_decode(row, f"{folder}, split {split}") for row in rows], done / total


def _decode(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A TFDS record in plain Python: text comes as bytes and numbers as those of NumPy."""
    plain = {}
    for key, value in row.items():
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: {key} is not UTF-8 text ({error.reason}).") from error
        elif hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()
        plain[key] = value
    return plain
