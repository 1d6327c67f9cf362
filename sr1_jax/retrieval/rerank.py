"""A reranker: a cross-encoder orders anew what a retriever of any kind found.

Nogueira and Cho 2019 (arXiv 1901.04085): a search engine finds candidates, and a model that reads
query and passage together ranks them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sr1_jax.models.cross_encoder_folder import load_cross_encoder
from sr1_jax.paths import local_path
from sr1_jax.retrieval.base import Passage, Retriever, check_search
from sr1_jax.retrieval.dispatch import Dispatch, one_at_a_time, own_devices
from sr1_jax.retrieval.embedder import passage_text
from sr1_jax.retrieval.hooks import Wrapper, counts_of
from sr1_jax.retrieval.pair_scorer import PairScorer


class Reranked(Wrapper):
    """A retriever whose results a cross-encoder has ranked; scores are the cross-encoder's.

    A query that leaves no room for a passage in what the model reads keeps the ranking, and the
    scores, that it was found with, and is counted.

    Args:
        inner: what finds the candidates.
        scorer: the cross-encoder.
        depth: candidates, or as many as are wanted if those are more.

    Attributes:
        fingerprint: of the retriever's, the model and the depth; "" if the retriever has none.
        rerank_dispatch: runs the device programs of a search, one search at a time; by default in
            the thread that searches. See `DenseRetriever.dispatch`.
    """

    def __init__(self, inner: Retriever, scorer: PairScorer, depth: int):
        super().__init__(inner)
        self._scorer, self._depth = scorer, depth
        self.rerank_dispatch: Dispatch = one_at_a_time()
        said = str(getattr(inner, "fingerprint", ""))
        told = json.dumps([said, scorer.fingerprint, depth]).encode()
        self.fingerprint = hashlib.sha256(told).hexdigest() if said else ""
        names = ("rerank_pairs", "rerank_cut_passages", "rerank_long_queries")
        self._counts = collections.Counter(dict.fromkeys(names, 0))
        self._lock = threading.Lock()

    def counts(self) -> dict[str, float]:
        """Pairs scored, passages in them whose end was cut, and queries too long to be ranked."""
        with self._lock:
            return counts_of(self.inner) | {key: float(n) for key, n in self._counts.items()}

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`; of equal scores what was found first stays first."""
        check_search(queries, k)
        found = self.inner.search(queries, max(k, self._depth))
        pairs = [
            (query, passage_text(passage.title, passage.text))
            for query, passages in zip(queries, found)
            for passage in passages
        ]
        if not pairs:
            return found
        scored = self.rerank_dispatch(lambda: self._scorer.score(pairs))
        ends = np.cumsum([len(passages) for passages in found])[:-1]
        ranked = [_ranked(*each) for each in zip(found, np.split(scored.score_N, ends))]
        with self._lock:
            self._counts["rerank_pairs"] += int(np.isfinite(scored.score_N).sum())
            self._counts["rerank_cut_passages"] += scored.cut
            self._counts["rerank_long_queries"] += sum(each is None for each in ranked)
        return [(new or old)[:k] for old, new in zip(found, ranked)]


def _ranked(passages: Sequence[Passage], scores: np.ndarray) -> list[Passage] | None:
    """Passages by their new scores, best first; None where the query left no room for any."""
    if np.isnan(scores).any():
        return None
    order = np.argsort(-scores, kind="stable")
    return [dataclasses.replace(passages[i], score=float(scores[i])) for i in order]


def open_scorer(rerank: Mapping[str, Any]) -> PairScorer:
    """The cross-encoder of the settings, on the devices of this process.

    Args:
        rerank: the section `retrieval.rerank` of the settings, with a model.

    Raises:
        ValueError: a fault in the model's folder, `max_tokens` out of range, or there are several
            processes.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "retrieval.rerank ranks in one process so far; serve the reranked index with "
            "python -m sr1_jax.serve --config.retrieval.rerank.model=FOLDER, set "
            "retrieval.kind=http and leave retrieval.rerank.model empty."
        )
    folder = local_path(rerank["model"], "retrieval.rerank.model")
    model = load_cross_encoder(folder, dtype=rerank["dtype"], max_tokens=rerank["max_tokens"])
    return PairScorer(model, own_devices(), rerank["batch"])
