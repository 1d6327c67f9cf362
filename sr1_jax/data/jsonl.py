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
    source = f"{path}:"
    for number, line, _ in _read_lines(path):
        if not line.isspace():
            yield number, parse_line(line, f"{source}{number}")


def read_blocks(path: str | os.PathLike, size: int) -> Iterator[tuple[int, list[bytes], float]]:
    """Reads the lines of a JSON-lines file unparsed, in blocks: for who parses them elsewhere.

    Args:
        path: as in `read_jsonl`.
        size: bytes after which a block ends, at the end of a line.

    Returns:
        An iterator of (number of the block's first line, its lines, share of the file read).

    Raises:
        ValueError: while iterating: a damaged gzip file.
    """
    first, lines, held, share = 1, [], 0, 0.0
    for number, line, share in _read_lines(Path(path)):
        lines.append(line)
        held += len(line)
        if held >= size:
            yield first, lines, share
            first, lines, held = number + 1, [], 0
    if lines:
        yield first, lines, share


def _read_lines(path: Path) -> Iterator[tuple[int, bytes, float]]:
    """(number from 1, line, share of the file read), one at a time."""
    number = 0
    with open(path, "rb") as raw:
        total = max(1, os.fstat(raw.fileno()).st_size)
        zipped = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            for number, line in enumerate(file, start=1):
                yield number, line, raw.tell() / total
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path}: damaged gzip file after line {number} ({error}); "
                "copy or download it again."
            ) from error


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The object of one line.

    Args:
        line: as it stands in the file.
        where: file and line, for the message.

    Raises:
        ValueError: not UTF-8, malformed JSON, not an object, or half of a surrogate pair.
    """
    try:
        # Not as utf-8-sig, which takes longer than the JSON of a short line.
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 text ({error.reason}, byte {error.start}); "
            "expected JSON lines (.jsonl or .jsonl.gz)."
        ) from error
    # The byte-order mark that some editors put in front of the first line.
    text = text.removeprefix("\ufeff")
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
