"""A process that searches through a cache on disk: PATH, most bytes, seed. Prints wrong results,
failures of the store, and hits."""

import random
import sys
from pathlib import Path

from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.cache import Cached
from sr1_jax.retrieval.cache_stores import DiskStore


class Echo:
    def search(self, queries, k):
        return [[Passage(query, "T", query * 20, 1.0)] for query in queries]


def main(path, most_bytes, seed):
    retriever = Cached(Echo(), DiskStore(Path(path), int(most_bytes)), "index")
    rng, wrong = random.Random(int(seed)), 0
    for _ in range(300):
        queries = [f"query {rng.randrange(400)}" for _ in range(4)]
        found = retriever.search(queries, 1)
        wrong += [row[0].text for row in found] != [query * 20 for query in queries]
    counts = retriever.counts()
    print(wrong, int(counts["cache_errors"]), int(counts["cache_hits"]))


main(*sys.argv[1:])
