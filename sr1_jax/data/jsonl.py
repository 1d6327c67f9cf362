"""JSON lines, plain or gzipped, read with errors that name the file and the line."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GZIP_MAGIC = b"\x1f\x8b"


def read_jsonl(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the objects of a JSON-lines file, one at a time.

    A gzip file is known by its first bytes, whatever its name. Blank lines are skipped.

    Args:
        path: the file, usually `.jsonl` or `.jsonl.gz`.

    Returns:
        An iterator of (line number from 1, object).

    Raises:
        FileNotFoundError: there is no such file (raised at once, not at the first line).
        ValueError: a folder; while iterating: not UTF-8, malformed JSON, a line that is not an
            object, or a damaged gzip file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a .jsonl or .jsonl.gz file.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; give a .jsonl or .jsonl.gz file.")
    return _read_objects(path)


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    number = 0
    with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, _parse_object(line, f"{path}:{number}")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: damaged gzip file after line {number} ({error}); "
                "copy or download it again."
            ) from error


def _parse_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        # utf-8-sig drops the byte-order mark some editors put in front of the first line.
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 text ({error.reason}, byte {error.start}); "
            "expected JSON lines (.jsonl or .jsonl.gz)."
        ) from error
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: malformed JSON ({error}); write one object a line.") from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected a JSON object, found {type(row).__name__}; write one object a line."
        )
    if "\\u" in text and not _is_encodable(row):
        raise ValueError(
            f"{where}: half of a surrogate pair (\\ud800 to \\udfff) is no character; "
            "remove it or write the whole pair."
        )
    return row


def _is_encodable(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
