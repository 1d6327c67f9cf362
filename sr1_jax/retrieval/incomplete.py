"""An incomplete corpus on purpose: a share of the passages that no search finds.

Which ones depends on their ids alone, so that every run, process and query lacks the same ones, and
a larger share lacks those of a smaller one too. No index is built anew for it.
"""

from __future__ import annotations

import hashlib

from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.retrieval.hooks import Wrapper


class Incomplete(Wrapper):
    """A retriever that never finds some of its passages, and finds the next best instead.

    Args:
        inner: what searches.
        share: of the passages that are missing.
        most: passages that `inner` can find for a query; None: as many as there are.
    """

    def __init__(self, inner: Retriever, share: float, most: int | None = None):
        super().__init__(inner)
        self._share, self._most = share, most

    @property
    def fingerprint(self) -> str:
        inner = getattr(self.inner, "fingerprint", "")
        return inner and hashlib.sha256(f"{inner} without {self._share}".encode()).hexdigest()

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`; asks for more passages until k are left."""
        results: list[list[Passage]] = [[] for _ in queries]
        waiting, asked = list(range(len(queries))), k
        while waiting:
            found = self.inner.search([queries[i] for i in waiting], asked)
            for i, passages in zip(waiting, found, strict=True):
                results[i] = [p for p in passages if not is_missing(p.id, self._share)][:k]
            # What found fewer than it was asked for has no more.
            waiting = [
                i
                for i, passages in zip(waiting, found)
                if len(results[i]) < k and len(passages) == asked
            ]
            if asked == self._most:
                break
            asked = min(2 * asked, self._most or 2 * asked)
        return results


def is_missing(passage_id: str, share: float) -> bool:
    """Whether a passage is among the share that is missing."""
    digest = hashlib.blake2b(passage_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
