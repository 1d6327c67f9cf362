"""The best passages of a query by BM25, without looking at all of them.

A score is a sum over the query's words, and a word adds at most the highest score of its postings.
Words are added rarest first. Once the k-th best sum so far exceeds what the words that are left
could add together, no passage that holds only those can enter the result: they are then looked up
for the passages that still can, instead of being added to all. That is MaxScore (Turtle and Flood,
"Query evaluation: strategies and optimizations", 1995) with terms taken one at a time, as in Moffat
and Zobel's "Self-indexing inverted files for fast text retrieval" (1996), strategy "continue". It
leaves out no passage of the result: ranks and scores are those of the full sum, equal scores in the
order of the corpus.

Array suffixes: N passages, P postings, C candidates.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sr1_jax.retrieval.bm25_merge import (
    MAX_SCORES_FILE,
    PASSAGES_FILE,
    SCORES_FILE,
    STARTS_FILE,
)

# Sums of float32 in another order differ by less than this share of the largest.
_ROUNDING = 1e-6
# A candidate is looked up by bisection, which costs about as much as adding this many postings.
_LOOKUP = 16
# Scores of which the k-th best is taken exactly; of more, that of the maxima of so many groups.
_EXACT = 4096


@dataclass(frozen=True)
class Postings:
    """The postings of an index; see `bm25_merge` for the files.

    Attributes:
        scores_P: float32.
        passages_P: int32, ascending within a word.
        starts_V: int64 [V + 1].
        max_scores_V: float32.
        passages: N.
    """

    scores_P: np.ndarray
    passages_P: np.ndarray
    starts_V: np.ndarray
    max_scores_V: np.ndarray
    passages: int

    @classmethod
    def load(cls, folder: Path, passages: int, *, mmap: bool) -> Postings:
        names = (SCORES_FILE, PASSAGES_FILE, STARTS_FILE, MAX_SCORES_FILE)
        arrays = (np.load(folder / name, mmap_mode="r" if mmap else None) for name in names)
        # Plain views: slicing an np.memmap costs ten times what slicing an array does.
        return cls(*(array.view(np.ndarray) for array in arrays), passages)

    def held(self, word: int) -> int:
        """How many passages hold a word."""
        return int(self.starts_V[word + 1] - self.starts_V[word])

    def of(self, word: int, weight: int) -> tuple[np.ndarray, np.ndarray]:
        """(passages, scores) of a word that stands `weight` times in the query."""
        span = slice(int(self.starts_V[word]), int(self.starts_V[word + 1]))
        scores = self.scores_P[span]
        return self.passages_P[span], scores if weight == 1 else scores * np.float32(weight)


class Searcher:
    """Searches postings; safe in threads, of which `most` search at once and others wait.

    Args:
        postings: of the index.
        most: sums of all passages that are kept, four bytes a passage each.
    """

    def __init__(self, postings: Postings, most: int):
        self._postings = postings
        self._sums: queue.LifoQueue[np.ndarray | None] = queue.LifoQueue()
        for _ in range(most):
            self._sums.put(None)  # made when it is first needed

    @contextmanager
    def _borrow_sums(self) -> Iterator[np.ndarray]:
        """Zeros of float32 [N]; whoever borrows them leaves them so."""
        sums_N = self._sums.get()
        try:
            if sums_N is None:
                sums_N = np.zeros(self._postings.passages, np.float32)
            yield sums_N
        except BaseException:
            sums_N = None
            raise
        finally:
            self._sums.put(sums_N)

    def top(self, words: Mapping[int, int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best passages, best first, equal scores in the order of the corpus.

        Args:
            words: how often each word stands in the query.
            k: at least 1.

        Returns:
            (passages, scores), of passages that hold a word of the query; at most `k`.
        """
        with self._borrow_sums() as sums_N:
            query = _Query(self._postings, words, k, sums_N)
            try:
                query.add_words()
                passages_C, scores_C = query.candidates()
                passages_C, scores_C = query.look_up(passages_C, scores_C)
            finally:
                query.clear()
        order = _best(scores_C, k)
        return passages_C[order], scores_C[order]


class _Query:
    """One query under way."""

    def __init__(self, postings: Postings, words: Mapping[int, int], k: int, sums_N: np.ndarray):
        # Rarest first; every passage's score is added up in this order, whatever is left out.
        self._words = sorted(words.items(), key=lambda item: (postings.held(item[0]), item[0]))
        self._postings, self._k, self._sums_N = postings, k, sums_N
        bounds = [float(postings.max_scores_V[word]) * weight for word, weight in self._words]
        # What the words from the j-th on can add together.
        self._rest = np.cumsum([0.0, *bounds[::-1]])[::-1].tolist()
        self._slack = _ROUNDING * self._rest[0]
        self._threshold = 0.0  # a sum that k passages have at least
        self._next = 0  # word that has not been added
        self._added: list[np.ndarray] = []  # passages of the words that have

    def _needed(self) -> float:
        """The sum that a passage must have so far to come into the result."""
        return self._threshold - self._rest[self._next] - self._slack

    def add_words(self) -> None:
        """Adds words to the sums of all their passages, for as long as new ones can matter."""
        for word, weight in self._words:
            if self._needed() > 0:
                return
            self._add(*self._postings.of(word, weight))
            self._next += 1

    def _add(self, passages: np.ndarray, scores: np.ndarray) -> None:
        sums = self._sums_N[passages] + scores if self._added else scores
        self._sums_N[passages] = sums
        self._added.append(passages)
        self._threshold = max(self._threshold, _kth(sums, self._k))

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """(passages, sums) of those that can still come into the result, in order of the corpus."""
        needed = max(self._needed(), np.finfo(np.float32).tiny)
        if sum(map(len, self._added)) * 8 > len(self._sums_N):
            passages_C = np.flatnonzero(self._sums_N >= needed).astype(np.int32)
        else:
            kept = [passages[self._sums_N[passages] >= needed] for passages in self._added]
            passages_C = np.unique(np.concatenate(kept)) if len(kept) > 1 else kept[0]
        return passages_C, self._sums_N[passages_C]

    def look_up(self, passages_C: np.ndarray, sums_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds the remaining words to the candidates, fewer of them from word to word."""
        for word, weight in self._words[self._next :]:
            passages, scores = self._postings.of(word, weight)
            if len(passages_C) * _LOOKUP < len(passages):
                places_C = np.searchsorted(passages, passages_C)
                places_C[places_C == len(passages)] = 0
                found_C = np.flatnonzero(passages[places_C] == passages_C)
                sums_C[found_C] += scores[places_C[found_C]]
            else:
                self._sums_N[passages_C] = sums_C
                self._add(passages, scores)
                sums_C = self._sums_N[passages_C]
            self._next += 1
            self._threshold = max(self._threshold, _kth(sums_C, self._k))
            kept_C = sums_C >= self._needed()
            passages_C, sums_C = passages_C[kept_C], sums_C[kept_C]
        return passages_C, sums_C

    def clear(self) -> None:
        """Makes the sums zero again."""
        if sum(map(len, self._added)) > len(self._sums_N):
            self._sums_N.fill(0)
        else:
            for passages in self._added:
                self._sums_N[passages] = 0


def _kth(values: np.ndarray, k: int) -> float:
    """The k-th highest of `values`, or less where that is faster; 0 where there are fewer."""
    if len(values) < k:
        return 0.0
    width = len(values) // max(_EXACT, 8 * k)
    if width > 1:
        # The maxima of disjoint groups are values of different passages.
        values = values[: len(values) // width * width].reshape(width, -1).max(axis=0)
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest scores, best first, equal ones in ascending order."""
    candidates = np.arange(len(scores))
    if len(scores) > k:
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]
