"""A retriever that takes a time of its own for every call, another one in each run."""

import random
import time

from sr1_jax.retrieval import BM25Retriever

LONGEST_SECONDS = 0.05


class Delayed:
    def __init__(self, retriever):
        self._retriever, self._random = retriever, random.SystemRandom()

    def search(self, queries, k):
        time.sleep(self._random.uniform(0, LONGEST_SECONDS))
        return self._retriever.search(queries, k)


def open_delayed(config, corpus, index):
    return Delayed(BM25Retriever.build(corpus, index))
