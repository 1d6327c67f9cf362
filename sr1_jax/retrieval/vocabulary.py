"""The words of an index on disk, looked up without being read into memory.

`vocab.index.json` is bm25s's: one object from word to number. Here the words stand in order of
their UTF-8 bytes, numbered from 0, so that a word can be found by bisection;
`vocab_offsets.npy`, int64 [V + 1], says where each entry begins.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

WORDS_FILE = "vocab.index.json"
OFFSETS_FILE = "vocab_offsets.npy"
# Words that are remembered with their numbers, at most: some 10 MB.
_REMEMBERED = 100_000


class VocabularyWriter:
    """Writes the words of an index into `folder`; a context manager."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._sizes: list[np.ndarray] = []
        self._count = 0

    def __enter__(self) -> VocabularyWriter:
        self._file = open(self._folder / WORDS_FILE, "wb")
        self._file.write(b"{")
        return self

    def add(self, words: Iterable[str]) -> None:
        """Adds the next words in order. Words hold no character that JSON would escape."""
        entries = [
            f', "{word}": {number}'.encode() for number, word in enumerate(words, self._count)
        ]
        if self._count == 0 and entries:
            entries[0] = entries[0][2:]
        self._sizes.append(np.fromiter(map(len, entries), np.int64, len(entries)))
        self._count += len(entries)
        self._file.write(b"".join(entries))

    def __exit__(self, *error) -> None:
        self._file.write(b"}")
        self._file.close()
        offsets = np.cumsum(np.concatenate([[1], *self._sizes]), dtype=np.int64)
        np.save(self._folder / OFFSETS_FILE, offsets)


class Vocabulary:
    """Finds the number of a word; safe to share between threads."""

    def __init__(self, folder: Path, *, mmap: bool = True):
        self._offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r" if mmap else None)
        self._text = (_map if mmap else Path.read_bytes)(folder / WORDS_FILE)
        self.find = lru_cache(_REMEMBERED)(self._find)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _find(self, word: str) -> int | None:
        """The number of `word`, or None where no passage holds it."""
        wanted = word.encode("utf-8")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self._word(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self._word(low) == wanted else None

    def _word(self, number: int) -> bytes:
        entry = self._text[int(self._offsets[number]) : int(self._offsets[number + 1])]
        return entry.split(b'"', 2)[1]


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
