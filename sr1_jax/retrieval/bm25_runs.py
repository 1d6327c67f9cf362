"""First half of a BM25 build: the word counts of one chunk of a corpus, as a run on disk.

A run is what one process makes of one chunk. Its words are in order, and so are the passages of a
word; `bm25_merge` puts the runs together. A run is a few files `NUMBER.NAME` in one folder:

    words         the distinct words, one a line, in order of their UTF-8 bytes
    starts.npy    int64 [W + 1], where the postings of each word begin
    passages.npy  int32 [P], passage of a posting, counted from the first of the chunk
    counts.npy    unsigned, as few bytes as do [P]: how often the word stands in the passage
    lengths.npy   int32 [N], words of each passage
    lines.npy     int64 [N], line or row of each passage in the corpus
    ids.npy       uint64 [N], hash of each passage's id
    sizes.npy     int32 [N], bytes of each encoded passage
    passages      the encoded passages
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sr1_jax.retrieval.corpus import parse_passage
from sr1_jax.retrieval.corpus_files import Chunk
from sr1_jax.retrieval.passages import encode_passage
from sr1_jax.retrieval.words import WordIds, find_words, stop_words

# Distinct words that a process remembers at most: some 200 MB.
_MOST_WORDS = 1_500_000


@dataclass(frozen=True)
class Run:
    """Where a run is, and how much of it there is.

    Attributes:
        folder: of all runs of a build.
        number: of the chunk, from 0.
        passages: how many.
        source: names the corpus in messages, see `Chunk`.
        share: see `Chunk`.
    """

    folder: Path
    number: int
    passages: int
    source: str
    share: float

    def path(self, name: str) -> Path:
        return run_path(self.folder, self.number, name)

    def load(self, name: str, *, mmap: bool = False) -> np.ndarray:
        return np.load(self.path(f"{name}.npy"), mmap_mode="r" if mmap else None)


def run_path(folder: Path, number: int, name: str) -> Path:
    """Path of one of a run's files."""
    return folder / f"{number:06d}.{name}"


@dataclass(frozen=True)
class CountWords:
    """Makes a run of a chunk: what a process of the build is asked for, chunk by chunk.

    Attributes:
        folder: for the runs.
        stemmer: see `words.WordIds`.
        stopwords: name of the list.
    """

    folder: Path
    stemmer: str | None
    stopwords: str | None

    def __call__(self, number: int, chunk: Chunk) -> Run:
        """
        Raises:
            ValueError: a fault in the chunk; names file and line.
        """
        ids = _word_ids(self.stemmer, self.stopwords)
        words = array("i")  # a list would be searched for garbage again and again
        word_counts, lines, id_hashes, sizes = [], [], [], []
        with open(run_path(self.folder, number, "passages"), "wb") as file:
            for line, row in chunk.rows():
                passage_id, title, text = parse_passage(row, chunk.where(line))
                found = find_words(f"{title}\n{text}".lower())
                words.extend(map(ids.__getitem__, found))
                word_counts.append(len(found))
                lines.append(line)
                id_hashes.append(_hash(passage_id))
                sizes.append(file.write(encode_passage(passage_id, title, text)))
        arrays = {
            "lines": np.array(lines, np.int64),
            "ids": np.frombuffer(b"".join(id_hashes), np.uint64),
            "sizes": np.array(sizes, np.int32),
        }
        words_T = np.array(words, np.int32)
        passages_T = np.repeat(
            np.arange(len(sizes), dtype=np.int32), np.array(word_counts, np.int64)
        )
        kept_T = words_T >= 0
        names, postings = _invert(words_T[kept_T], passages_T[kept_T], ids.stems)
        arrays |= postings
        arrays["lengths"] = np.bincount(passages_T[kept_T], minlength=len(sizes)).astype(np.int32)
        for name, values in arrays.items():
            np.save(run_path(self.folder, number, f"{name}.npy"), values)
        text = "".join(f"{name}\n" for name in names)
        run_path(self.folder, number, "words").write_text(text, encoding="utf-8", newline="\n")
        return Run(self.folder, number, len(sizes), chunk.source, chunk.share)


def _invert(
    words_T: np.ndarray, passages_T: np.ndarray, stems: list[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """The distinct words in order, and their postings: arrays starts, passages and counts."""
    used = np.flatnonzero(np.bincount(words_T, minlength=1)) if len(words_T) else words_T
    names = [stems[number] for number in used.tolist()]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank_of = np.zeros(len(stems), np.int64)
    rank_of[used[order]] = np.arange(len(order))
    # Sorted as one number, word in front; of a passage's repetitions the first is kept.
    bits = int(passages_T.max(initial=0)).bit_length()
    keys_T = rank_of[words_T]
    keys_T <<= bits
    keys_T |= passages_T
    keys_T.sort()
    new_T = np.ones(len(keys_T), bool)
    np.not_equal(keys_T[1:], keys_T[:-1], out=new_T[1:])
    first = np.flatnonzero(new_T)
    counts = np.diff(first, append=len(keys_T))
    keys = keys_T[first]
    starts = np.searchsorted(keys, np.arange(len(order) + 1, dtype=np.int64) << bits)
    return [names[i] for i in order], {
        "starts": starts.astype(np.int64),
        "passages": (keys & ((1 << bits) - 1)).astype(np.int32),
        "counts": counts.astype(np.min_scalar_type(int(counts.max(initial=1)))),
    }


def _hash(passage_id: str) -> bytes:
    return hashlib.blake2b(passage_id.encode("utf-8"), digest_size=8).digest()


@lru_cache(maxsize=1)
def _ids_of(stemmer: str | None, stopwords: str | None) -> list[WordIds]:
    return [WordIds(stemmer, stop_words(stopwords))]


def _word_ids(stemmer: str | None, stopwords: str | None) -> WordIds:
    """The process's numbers of words, kept from chunk to chunk: most words come again."""
    kept = _ids_of(stemmer, stopwords)
    if len(kept[0]) > _MOST_WORDS:
        kept[0] = WordIds(stemmer, stop_words(stopwords))
    return kept[0]
