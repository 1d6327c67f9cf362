"""Retrievers that are worse on purpose: one that finds nothing, and one that takes its time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.retrieval.hooks import Wrapper


class EmptyRetriever:
    """Finds nothing: what a policy does when searching never helps."""

    fingerprint = "empty"

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`."""
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}.")
        return [[] for _ in queries]


def open_empty(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> EmptyRetriever:
    """The retriever of retrieval.kind="empty"; reads nothing."""
    return EmptyRetriever()


class Delayed(Wrapper):
    """Every call of `search` takes so many seconds more."""

    def __init__(self, inner: Retriever, seconds: float):
        super().__init__(inner)
        self._seconds = seconds

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`."""
        time.sleep(self._seconds)
        return self.inner.search(queries, k)
