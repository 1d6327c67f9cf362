"""BM25 written down from its formula, of nothing that the index or bm25s is made of.

Every sum is in float64 and every passage is looked at. Only the Snowball stemmer is a library's.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import numpy as np
import Stemmer

# Lucene's list of English stop words.
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)


class PlainBM25:
    """Scores of all passages for a query.

    sum over the words t of q:
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * L / avgL))

    Kamphuis et al., "Which BM25 do you mean?", ECIR 2020, table 1, "Lucene (accurate)".

    Args:
        texts: title and text of each passage.
        k1: saturation.
        b: strength of length normalisation.
    """

    def __init__(self, texts, k1=0.9, b=0.4):
        self._stem = Stemmer.Stemmer("english").stemWord
        self._stems = {}
        held = defaultdict(list)
        lengths = []
        for number, text in enumerate(texts):
            words = self.words(text)
            lengths.append(len(words))
            for word, count in Counter(words).items():
                held[word].append((number, count))
        self._held = {word: np.array(rows) for word, rows in held.items()}
        lengths_N = np.array(lengths, np.float64)
        self._norms_N = k1 * (1 - b + b * lengths_N / lengths_N.mean())

    def words(self, text):
        """Stems of the words of two characters or more that are no stop words."""
        found = re.findall(r"\b\w{2,}\b", text.lower())
        for word in found:
            if word not in self._stems:
                self._stems[word] = self._stem(word)
        return [self._stems[word] for word in found if word not in STOP_WORDS]

    def scores(self, query):
        """float64 [N]; 0 where no word of the query stands."""
        passages = len(self._norms_N)
        scores_N = np.zeros(passages)
        for word in self.words(query):
            if word in self._held:
                numbers, counts = self._held[word].T
                idf = math.log(1 + (passages - len(numbers) + 0.5) / (len(numbers) + 0.5))
                scores_N[numbers] += idf * counts / (counts + self._norms_N[numbers])
        return scores_N


def assert_same_ranks(found, scores_N, k):
    """Asserts that passages are the best `k`, in their order; equal scores may change places.

    Args:
        found: places of the passages in the corpus, best first.
        scores_N: of `PlainBM25`.
        k: passages that were asked for.
    """
    assert len(set(found)) == len(found) == min(k, int((scores_N > 0).sum()))
    best_k = np.argsort(-scores_N, kind="stable")[: len(found)]
    # Equal: as near as float32, in which the index holds its scores, can tell them apart.
    np.testing.assert_allclose(scores_N[found], scores_N[best_k], rtol=2e-6)
