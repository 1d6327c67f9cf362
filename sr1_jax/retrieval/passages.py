"""Passages on disk, read one at a time through memory maps.

`passages.jsonl` holds one `[id, title, text]` a line; `passage_offsets.npy`, int64 [N + 1], says
where each line begins, and last where the file ends. Nothing is kept in Python objects, so that a
corpus of tens of millions of passages costs no memory of its own.
"""

import json
import mmap
from array import array
from pathlib import Path

import numpy as np

PASSAGES_FILE = "passages.jsonl"
OFFSETS_FILE = "passage_offsets.npy"


class PassageWriter:
    """Writes passages into `folder`; a context manager that completes the files at its end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._offsets = array("q", [0])

    def __enter__(self) -> "PassageWriter":
        self._file = open(self._folder / PASSAGES_FILE, "wb")
        return self

    def add(self, passage_id: str, title: str, text: str) -> None:
        line = json.dumps([passage_id, title, text], ensure_ascii=False) + "\n"
        self._offsets.append(self._offsets[-1] + self._file.write(line.encode("utf-8")))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __exit__(self, error_type, error, traceback) -> None:
        self._file.close()
        if error_type is None:
            np.save(self._folder / OFFSETS_FILE, np.array(self._offsets, dtype=np.int64))


class PassageStore:
    """Random access to the passages in `folder`; safe to share between threads.

    Args:
        folder: where a `PassageWriter` wrote.
        mmap: map the files instead of reading them into memory.
    """

    def __init__(self, folder: Path, *, mmap: bool = True):
        self._offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r" if mmap else None)
        self._lines = (_map if mmap else Path.read_bytes)(folder / PASSAGES_FILE)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[str, str, str]:
        """Passage `index` as (id, title, text)."""
        passage_id, title, text = json.loads(
            self._lines[int(self._offsets[index]) : int(self._offsets[index + 1])]
        )
        return passage_id, title, text


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
