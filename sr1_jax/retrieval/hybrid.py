"""Several retrievers as one, by reciprocal-rank fusion.

Cormack, Clarke and Büttcher, SIGIR 2009, section 2: with R the rankings and r(d) the rank of
passage d in one of them, from 1,

    score(d) = sum over r in R that hold d: 1 / (k + r(d)),   k = 60

Scores of different retrievers need not be comparable: only ranks count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sr1_jax.retrieval.base import Passage, Retriever, check_search


class HybridRetriever:
    """Fuses what several retrievers find.

    Args:
        retrievers: over one corpus, by a name of each; passages are told apart by their ids.
        k: of the formula.
        depth: passages that each is asked for, or as many as are wanted of the fusion if those are
            more.

    Attributes:
        fingerprint: of the retrievers' fingerprints and the options; "" if one has none.
        corpus_sha256: of the corpus, where one of the retrievers knows it.
    """

    def __init__(self, retrievers: Mapping[str, Retriever], *, k: float = 60, depth: int = 100):
        self._retrievers, self._k, self._depth = dict(retrievers), k, depth
        said = [str(getattr(each, "fingerprint", "")) for each in self._retrievers.values()]
        told = json.dumps([said, k, depth]).encode()
        self.fingerprint = hashlib.sha256(told).hexdigest() if all(said) else ""
        hashes = [getattr(each, "corpus_sha256", None) for each in self._retrievers.values()]
        known = sorted({each for each in hashes if each is not None})
        if len(known) > 1:
            raise ValueError(
                f"retrieval.hybrid.kinds={tuple(self._retrievers)}: the indexes are of different "
                "corpora; build them of one."
            )
        self.corpus_sha256 = known[0] if known else None

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._with_passages())

    def passage(self, number: int) -> Passage:
        """A passage by its place in the corpus, from 0; its score is 0."""
        return self._with_passages().passage(number)

    def _with_passages(self) -> Any:
        for each in self._retrievers.values():
            if hasattr(each, "passage"):
                return each
        raise AttributeError("none of the retrievers gives passages by number")

    def counts(self) -> dict[str, float]:
        """Totals of the retrievers, behind their names."""
        return {
            f"{name}_{key}": value
            for name, each in self._retrievers.items()
            if hasattr(each, "counts")
            for key, value in each.counts().items()
        }

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`; scores are those of the formula."""
        check_search(queries, k)
        depth = max(k, self._depth)
        rankings = [each.search(queries, depth) for each in self._retrievers.values()]
        return [fused(of_query, self._k)[:k] for of_query in zip(*rankings)]


def fused(rankings: Sequence[Sequence[Passage]], k: float) -> list[Passage]:
    """One ranking of several: best first; of equal scores first what an earlier ranking has first.

    Args:
        rankings: each best first.
        k: of the formula.
    """
    passages: dict[str, Passage] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, 1):
            passages.setdefault(passage.id, passage)
            scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (k + rank)
    order = sorted(scores, key=lambda passage_id: -scores[passage_id])
    return [dataclasses.replace(passages[each], score=scores[each]) for each in order]


def open_hybrid(
    config: Mapping[str, Any],
    corpus: Path | None,
    index: Path | None,
    *,
    open_kind: Callable[[str], Callable[..., Retriever]],
) -> HybridRetriever:
    """The retriever of the settings.

    Args:
        config: the section `retrieval`; each kind takes its own settings from it.
        corpus: that all of them search.
        index: a folder with a folder for each kind, named like it.
        open_kind: name of a kind -> its factory.

    Raises:
        ValueError, OSError: what the kinds raise; the indexes are of different corpora.
    """
    options = config["hybrid"]
    retrievers = {}
    for kind in options["kinds"]:
        folder = None if index is None else index / kind.replace(":", ".")
        retrievers[kind] = open_kind(kind)(config, corpus, folder)
    return HybridRetriever(retrievers, k=options["k"], depth=options["depth"])
