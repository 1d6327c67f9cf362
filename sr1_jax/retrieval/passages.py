"""Passages on disk, read one at a time through memory maps.

`passages.jsonl` holds one `[id, title, text]` a line; `passage_offsets.npy`, int64 [N + 1], says
where each line begins, and last where the file ends. Nothing is kept in Python objects, so that a
corpus of tens of millions of passages costs no memory of its own.
"""

import json
import mmap
import shutil
from pathlib import Path

import numpy as np

PASSAGES_FILE = "passages.jsonl"
OFFSETS_FILE = "passage_offsets.npy"


def encode_passage(passage_id: str, title: str, text: str) -> bytes:
    """The line of a passage."""
    return (json.dumps([passage_id, title, text], ensure_ascii=False) + "\n").encode("utf-8")


def join_passages(folder: Path, parts: list[Path], sizes_N: np.ndarray) -> None:
    """Makes the two files of encoded passages.

    Args:
        folder: to put them in.
        parts: files of encoded passages, in order; each is removed once it is copied.
        sizes_N: bytes of each passage.
    """
    with open(folder / PASSAGES_FILE, "wb") as file:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
            part.unlink()
    np.save(folder / OFFSETS_FILE, np.concatenate([[0], np.cumsum(sizes_N, dtype=np.int64)]))


class PassageStore:
    """Random access to the passages in `folder`; safe to share between threads.

    Args:
        folder: where `join_passages` wrote.
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
