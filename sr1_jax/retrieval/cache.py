"""A cache of what searches found.

An entry is keyed by the retriever's fingerprint (corpus and options of its index), the query and k:
it is never that of another index. Episodes of a group, and later epochs, ask much the same.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr1_jax.paths import disk_path
from sr1_jax.retrieval.base import Passage, Retriever, Unanswered
from sr1_jax.retrieval.cache_stores import DiskStore, MemoryStore, Store
from sr1_jax.retrieval.hooks import Wrapper, counts_of

KINDS = ("none", "memory", "disk")
# Of the entries, part of every key: entries of another form are not found.
VERSION = 1
FILE = "results.sqlite"


class Cached(Wrapper):
    """A retriever that is asked only for what is not in a store.

    A store that fails costs a search, never a run: it counts as a miss, and is told once.

    Args:
        inner: what searches.
        store: of results.
        index: tells the index from all others; the retriever's fingerprint.
    """

    def __init__(self, inner: Retriever, store: Store, index: str):
        super().__init__(inner)
        self._store, self._index = store, index
        self._counts = collections.Counter(cache_hits=0, cache_misses=0, cache_errors=0)
        self._lock = threading.Lock()

    def counts(self) -> dict[str, float]:
        """Queries found in the store (hits) and not (misses), and failures of the store."""
        with self._lock:
            return counts_of(self.inner) | {key: float(n) for key, n in self._counts.items()}

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`."""
        keys = [self._key(query, k) for query in queries]
        found = self._get(list(dict.fromkeys(keys)))
        missing = {key: query for key, query in zip(keys, queries) if key not in found}
        with self._lock:
            misses = sum(key in missing for key in keys)
            self._counts["cache_misses"] += misses
            self._counts["cache_hits"] += len(keys) - misses
        if missing:
            results = self.inner.search(list(missing.values()), k)
            if len(results) != len(missing):
                raise RuntimeError(f"{len(results)} results came back for {len(missing)} queries")
            new = dict(zip(missing, results))
            kept = {key: row for key, row in new.items() if not isinstance(row, Unanswered)}
            self._put({key: _packed(passages) for key, passages in kept.items()})
            found |= new
        return [list(found[key]) for key in keys]

    def _key(self, query: str, k: int) -> bytes:
        told = json.dumps([VERSION, self._index, k, query]).encode("ascii")
        return hashlib.blake2b(told, digest_size=20).digest()

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, list[Passage]]:
        try:
            return {key: _unpacked(value) for key, value in self._store.get(keys).items()}
        except sqlite3.Error as error:
            self._failed(error)
            return {}

    def _put(self, values: Mapping[bytes, bytes]) -> None:
        try:
            self._store.put(values)
        except sqlite3.Error as error:
            self._failed(error)

    def _failed(self, error: sqlite3.Error) -> None:
        with self._lock:
            self._counts["cache_errors"] += 1
            first = self._counts["cache_errors"] == 1
        if first:
            logging.getLogger(__name__).warning(
                "The cache of results failed (%r); searches go on without it.", error
            )


def _packed(passages: Sequence[Passage]) -> bytes:
    # ASCII: half a surrogate pair has no UTF-8.
    return json.dumps([(p.id, p.title, p.text, p.score) for p in passages]).encode("ascii")


def _unpacked(value: bytes) -> list[Passage]:
    return [Passage(*fields) for fields in json.loads(value)]


def with_cache(retriever: Retriever, cache: Mapping[str, Any]) -> Retriever:
    """A retriever with the cache of the settings; the same one with cache.kind="none".

    Args:
        retriever: of any kind.
        cache: the section `retrieval.cache` of the settings.

    Raises:
        ValueError: a cache on disk for a retriever without a fingerprint, whose entries could be
            those of another index; or a file there that is no cache.
        OSError: the folder cannot be written to.
    """
    if cache["kind"] == "none":
        return retriever
    most_bytes = int(cache["mib"] * 2**20)
    index = str(getattr(retriever, "fingerprint", ""))
    if cache["kind"] == "memory":
        return Cached(retriever, MemoryStore(most_bytes), index)
    if not index:
        raise ValueError(
            "retrieval.cache.kind='disk' outlives the run, and this retriever does not say which "
            "index it searches (it has no fingerprint): use retrieval.cache.kind='memory'."
        )
    return Cached(retriever, DiskStore(cache_folder(cache) / FILE, most_bytes), index)


def cache_folder(cache: Mapping[str, Any]) -> Path:
    """retrieval.cache.folder; by default the user's own cache, which all runs on the host share."""
    if cache["folder"]:
        return disk_path(cache["folder"], "retrieval.cache.folder")
    own = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(own) if own else Path.home() / ".cache") / "sr1_jax" / "retrieval"
