"""The best passages of a query by BM25, without looking at all of them.

A score is a sum over the query's words, and a word adds at most the highest score of its postings.
Words are added rarest first. Once the k-th best sum so far exceeds what the words that are left
could add together, no passage that holds only those can enter the result: they are then looked up
for the passages that still can, instead of being added to all. That is MaxScore (Turtle and Flood,
"Query evaluation: strategies and optimizations", 1995) with terms taken one at a time, as in Moffat
and Zobel's "Self-indexing inverted files for fast text retrieval" (1996), strategy "continue". It
leaves out no passage of the result: ranks and scores are those of the full sum, equal scores in the
order of the corpus.

Passages are searched in blocks, one after the other, whose sums stay in the processor's cache; what
the best of the blocks before have is what those of the next must beat.

Array suffixes: N passages, B of a block, P postings, C candidates.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
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
# Passages of a block: four bytes each. A word and a block take some array operations each.
_BLOCK = 1 << 20


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

    def of(self, word: int) -> tuple[np.ndarray, np.ndarray]:
        """(passages, scores) of a word."""
        span = slice(int(self.starts_V[word]), int(self.starts_V[word + 1]))
        return self.passages_P[span], self.scores_P[span]


class Searcher:
    """Searches postings; safe in threads, of which `most` search at once and others wait.

    Args:
        postings: of the index.
        most: sums of a block's passages that are kept, four bytes a passage each.
    """

    def __init__(self, postings: Postings, most: int):
        self._postings = postings
        self._sums: queue.LifoQueue[np.ndarray | None] = queue.LifoQueue()
        for _ in range(most):
            self._sums.put(None)  # made when it is first needed

    @contextmanager
    def _borrow_sums(self) -> Iterator[np.ndarray]:
        """Zeros of float32 [B]; whoever borrows them leaves them so."""
        sums_B = self._sums.get()
        try:
            if sums_B is None:
                sums_B = np.zeros(min(self._postings.passages, _BLOCK), np.float32)
            yield sums_B
        except BaseException:
            sums_B = None
            raise
        finally:
            self._sums.put(sums_B)

    def top(self, words: Mapping[int, int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best passages, best first, equal scores in the order of the corpus.

        Args:
            words: how often each word stands in the query.
            k: at least 1.

        Returns:
            (passages, scores), of passages that hold a word of the query; at most `k`.
        """
        # Rarest first; every passage's score is added up in this order, whatever is left out.
        rarest_first = sorted(words.items(), key=lambda of: (self._postings.held(of[0]), of[0]))
        terms = [_Term.of(self._postings, word, weight) for word, weight in rarest_first]
        passages_k, scores_k = np.empty(0, np.int32), np.empty(0, np.float32)
        with self._borrow_sums() as sums_B:
            for block in range(-(-self._postings.passages // _BLOCK)):
                threshold = float(scores_k[-1]) if len(scores_k) == k else 0.0
                passages_C, scores_C = _search_block(terms, block, k, threshold, sums_B)
                passages_C = np.concatenate([passages_k, passages_C + np.int32(block * _BLOCK)])
                scores_C = np.concatenate([scores_k, scores_C])
                order = _best(scores_C, k)
                passages_k, scores_k = passages_C[order], scores_C[order]
        return passages_k, scores_k


@dataclass(frozen=True)
class _Term:
    """A word of a query.

    Attributes:
        passages_P: that hold it, ascending.
        scores_P: of one time that it stands in the query.
        weight: how often it does.
        most: that it adds to a score.
        starts: of each block's postings, and the end of the last.
    """

    passages_P: np.ndarray
    scores_P: np.ndarray
    weight: int
    most: float
    starts: list[int]

    @classmethod
    def of(cls, postings: Postings, word: int, weight: int) -> _Term:
        passages_P, scores_P = postings.of(word)
        edges = np.arange(_BLOCK, postings.passages, _BLOCK)
        # Of the same type: else all postings are copied.
        inner = np.searchsorted(passages_P, edges.astype(passages_P.dtype))
        starts = [0, *inner.tolist(), len(passages_P)]
        most = float(postings.max_scores_V[word]) * weight
        return cls(passages_P, scores_P, weight, most, starts)

    def block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(passages, scores) of a block, as they lie in the index."""
        span = slice(*self.starts[block : block + 2])
        return self.passages_P[span], self.scores_P[span]


def _search_block(
    terms: Sequence[_Term], block: int, k: int, threshold: float, sums_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(passages, counted from the first of the block; scores): all of it that may come into the
    result, in the order of the corpus."""
    query = _Query(terms, block, k, threshold, sums_B)
    try:
        query.add_words()
        return query.look_up(*query.candidates())
    finally:
        query.clear()


class _Query:
    """A query under way in one block.

    Args:
        terms: its words, rarest first.
        block: number of the block.
        k: passages wanted.
        threshold: score that k passages of the blocks before have.
        sums_B: zeros.
    """

    def __init__(
        self, terms: Sequence[_Term], block: int, k: int, threshold: float, sums_B: np.ndarray
    ):
        self._terms, self._block, self._k, self._sums_B = terms, block, k, sums_B
        self._first = np.int32(block * _BLOCK)
        # What the words from the j-th on can add together.
        self._rest = np.cumsum([0.0, *(term.most for term in reversed(terms))])[::-1].tolist()
        self._slack = _ROUNDING * self._rest[0]
        self._threshold = threshold  # a sum that k passages have at least
        self._next = 0  # word that has not been added
        self._added: list[np.ndarray] = []  # passages of the words that have

    def _needed(self) -> float:
        """The sum that a passage must have so far to come into the result."""
        return self._threshold - self._rest[self._next] - self._slack

    def add_words(self) -> None:
        """Adds words to the sums of all their passages, for as long as new ones can matter."""
        for term in self._terms:
            if self._needed() > 0:
                return
            self._add(term)
            self._next += 1

    def _add(self, term: _Term) -> None:
        passages, scores = term.block(self._block)
        if self._block:
            passages = passages - self._first
        if term.weight > 1:
            scores = scores * np.float32(term.weight)
        sums = self._sums_B[passages] + scores if self._added else scores
        self._sums_B[passages] = sums
        self._added.append(passages)
        self._threshold = max(self._threshold, _kth(sums, self._k))

    def candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """(passages, sums) of those that can still come into the result, in order of the corpus."""
        needed = max(self._needed(), np.finfo(np.float32).tiny)
        if sum(map(len, self._added)) * 8 > len(self._sums_B):
            passages_C = np.flatnonzero(self._sums_B >= needed).astype(np.int32)
        else:
            kept = [passages[self._sums_B[passages] >= needed] for passages in self._added]
            passages_C = np.unique(np.concatenate(kept)) if len(kept) > 1 else kept[0]
        return passages_C, self._sums_B[passages_C]

    def look_up(self, passages_C: np.ndarray, sums_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds the remaining words to the candidates, fewer of them from word to word."""
        for term in self._terms[self._next :]:
            if not len(passages_C):
                break
            passages, scores = term.block(self._block)
            if len(passages_C) * _LOOKUP < len(passages):
                wanted_C = passages_C + self._first
                places_C = np.searchsorted(passages, wanted_C)
                places_C[places_C == len(passages)] = 0
                found_C = np.flatnonzero(passages[places_C] == wanted_C)
                sums_C[found_C] += scores[places_C[found_C]] * np.float32(term.weight)
            else:
                self._sums_B[passages_C] = sums_C
                self._add(term)
                sums_C = self._sums_B[passages_C]
            self._next += 1
            self._threshold = max(self._threshold, _kth(sums_C, self._k))
            kept_C = sums_C >= self._needed()
            passages_C, sums_C = passages_C[kept_C], sums_C[kept_C]
        return passages_C, sums_C

    def clear(self) -> None:
        """Makes the sums zero again."""
        if sum(map(len, self._added)) > len(self._sums_B):
            self._sums_B.fill(0)
        else:
            for passages in self._added:
                self._sums_B[passages] = 0


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
