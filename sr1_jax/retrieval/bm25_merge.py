"""Second half of a BM25 build: runs into one index, in the form of bm25s.

The postings of all words are one array after the other, as columns of a sparse matrix:

    data.csc.index.npy     float32 [P], score of a posting
    indices.csc.index.npy  int32 [P], its passage; ascending within a word
    indptr.csc.index.npy   int64 [V + 1], where the postings of each word begin
    params.index.json      k1, b and the variant: `bm25s.BM25.load` opens the folder
    max_scores.npy         float32 [V], the highest score of each word: ours, for pruned search

Memory is bounded by the postings of the commonest word, not by the corpus: words are taken in
groups of some millions of postings, and each group is collected from all runs.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from sr1_jax.retrieval.bm25_runs import Run
from sr1_jax.retrieval.vocabulary import VocabularyWriter

SCORES_FILE = "data.csc.index.npy"
PASSAGES_FILE = "indices.csc.index.npy"
STARTS_FILE = "indptr.csc.index.npy"
MAX_SCORES_FILE = "max_scores.npy"
PARAMS_FILE = "params.index.json"
_GROUP = 4 << 20  # postings collected at a time, more where one word has more
_WORDS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class _Merge:
    """What the groups of words share.

    Attributes:
        runs: in order.
        words: of each run, int32: its words' numbers in the index, ascending.
        first: of each run, int64: its first passage in the index.
        starts_V: int64 [V + 1], where the postings of each word begin.
        norms_N: float64 [N], k1 (1 - b + b L / avgL) of each passage.
    """

    runs: list[Run]
    words: list[np.ndarray]
    first: np.ndarray
    starts_V: np.ndarray
    norms_N: np.ndarray


def merge_runs(
    runs: list[Run],
    folder: Path,
    *,
    k1: float,
    b: float,
    workers: int,
    progress: Callable[[float], None],
) -> int:
    """Writes the index of a corpus.

    Args:
        runs: of all chunks, in order.
        folder: for the files.
        k1: saturation of word counts.
        b: strength of length normalisation.
        workers: threads; NumPy does the work and lets them run side by side.
        progress: told the share that is done, now and then.

    Returns:
        The number of words; nothing but the vocabulary is written where it is 0.
    """
    words, counts_V = _merge_words(runs, folder)
    if not len(counts_V):
        return 0
    lengths_N = np.concatenate([run.load("lengths") for run in runs])
    merge = _Merge(
        runs,
        words,
        np.cumsum([0] + [run.passages for run in runs]),
        np.concatenate([[0], np.cumsum(counts_V, dtype=np.int64)]),
        k1 * (1 - b + b * lengths_N / lengths_N.mean()),
    )
    total = int(merge.starts_V[-1])
    max_scores = []
    with (
        _NumpyFile(folder / SCORES_FILE, np.float32, total) as scores_file,
        _NumpyFile(folder / PASSAGES_FILE, np.int32, total) as passages_file,
    ):
        for scores, passages, highest in _in_threads(merge, workers):
            scores_file.append(scores)
            passages_file.append(passages)
            max_scores.append(highest)
            progress(scores_file.length / total)
    np.save(folder / STARTS_FILE, merge.starts_V)
    np.save(folder / MAX_SCORES_FILE, np.concatenate(max_scores))
    _write_params(folder, k1, b, len(lengths_N))
    return len(counts_V)


def _merge_words(runs: list[Run], folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Writes the vocabulary; returns each run's words by number, and the passages of each word."""
    numbers = [array("i") for _ in runs]
    count = 0

    def distinct(lines: Iterator[tuple[str, int]]) -> Iterator[str]:
        nonlocal count
        previous = None
        for word, run in lines:
            if word != previous:
                count += 1
                previous = word
                yield word.removesuffix("\n")
            numbers[run].append(count - 1)

    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(open(run.path("words"), encoding="utf-8", newline="\n"))
            for run in runs
        ]
        writer = stack.enter_context(VocabularyWriter(folder))
        words = distinct(heapq.merge(*map(zip, files, map(repeat, range(len(runs))))))
        while some := list(islice(words, _WORDS_AT_ONCE)):
            writer.add(some)
    # np.frombuffer refuses empty buffers.
    of_runs = [np.array(of_run, np.int32) for of_run in numbers]
    counts_V = np.zeros(count, np.int64)
    for run, of_run in zip(runs, of_runs):
        counts_V[of_run] += np.diff(run.load("starts"))
    return of_runs, counts_V


def _in_threads(merge: _Merge, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(scores, passages, highest score of each word) of group after group, in order."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for first, last in _groups(merge.starts_V):
            waiting.append(pool.submit(_collect, merge, first, last))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _groups(starts_V: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of words, each of at most `_GROUP` postings or of one word."""
    first = 0
    while first < len(starts_V) - 1:
        last = int(np.searchsorted(starts_V, starts_V[first] + _GROUP, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _collect(merge: _Merge, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and passages of the words `first` to `last`, and each word's highest score."""
    starts = merge.starts_V[first : last + 1] - merge.starts_V[first]
    passages = np.empty(starts[-1], np.int32)
    counts = np.empty(starts[-1], np.float64)
    filled = starts[:-1].copy()
    for run, words, first_passage in zip(merge.runs, merge.words, merge.first):
        low, high = np.searchsorted(words, (first, last))
        if low == high:
            continue
        run_starts = run.load("starts", mmap=True)[low : high + 1]
        sizes = np.diff(run_starts)
        here = words[low:high] - first
        # Where each posting goes: behind those of the same word from earlier runs.
        places = np.repeat(filled[here] - (run_starts[:-1] - run_starts[0]), sizes)
        places += np.arange(len(places))
        filled[here] += sizes
        span = slice(int(run_starts[0]), int(run_starts[-1]))
        passages[places] = run.load("passages", mmap=True)[span] + first_passage
        counts[places] = run.load("counts", mmap=True)[span]
    held = np.diff(starts)
    idf = np.log1p((len(merge.norms_N) - held + 0.5) / (held + 0.5))
    counts /= counts + merge.norms_N[passages]
    counts *= np.repeat(idf, held)
    scores = counts.astype(np.float32)
    return scores, passages, np.maximum.reduceat(scores, starts[:-1])


class _NumpyFile:
    """A `.npy` file of one dimension that is written piece by piece; a context manager."""

    def __init__(self, path: Path, dtype: type, length: int):
        self._path, self._dtype, self._total = path, np.dtype(dtype), length
        self.length = 0

    def __enter__(self) -> _NumpyFile:
        self._file = open(self._path, "wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._total,),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        return self

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.length += len(values)

    def __exit__(self, *error) -> None:
        self._file.close()


def _write_params(folder: Path, k1: float, b: float, passages: int) -> None:
    params = {
        "k1": k1, "b": b, "delta": 0.5, "method": "lucene", "idf_method": "lucene",
        "dtype": "float32", "int_dtype": "int32", "num_docs": passages, "version": "0.3.0",
        "backend": "numpy",
    }  # fmt: skip
    (folder / PARAMS_FILE).write_text(json.dumps(params, indent=4), encoding="utf-8")
