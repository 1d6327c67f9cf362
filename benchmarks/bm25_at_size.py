"""Search with BM25 at the size of Wikipedia, without the hour that such an index takes to build.

    python benchmarks/bm25_at_size.py [--passages=1000000,21015324] [--queries=256] [--k=3]

The corpus and the queries are the synthetic ones of `retrieval.py`: 80 words a passage, of
200,000, by a Zipf law of exponent 1.05; six words a query. Of such a corpus only the postings of
the queries' words are drawn, each word's from the law that it follows there; that a place holds one
word only is left out. They are scored as the index scores them and mapped from disk, and the
index's own search (`bm25_search.Searcher`) runs over them in as many threads as there are cores.
What is not in it: splitting queries into words, and reading the passages that were found;
`retrieval.py` shows both, and they do not grow with the corpus.

At a size that `retrieval.py` builds too, the two give the same processor time a query: the test of
this shortcut. The first pass reads the postings as the disk has them, the second from memory.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from retrieval import WIKIPEDIA, draw

from sr1_jax.retrieval.bm25_search import Postings, Searcher

WORDS_A_PASSAGE = 80
K1 = 0.9  # all passages are equally long, so b does not matter
_BLOCK = 1_000_000
_SHARE = 4  # queries that a thread takes at a time, as in BM25Retriever


def law() -> np.ndarray:
    """Probability of each word, float64 [200,000]."""
    weights = np.arange(1, 200_001, dtype=float) ** -1.05
    return weights / weights.sum()


def draw_word(
    rng: np.random.Generator, probability: float, passages: int
) -> tuple[np.ndarray, np.ndarray]:
    """(passages that hold a word, int32; how often each does, int32).

    The gaps between the places of a word are geometric.
    """
    held, counts = [], []
    for first in range(0, passages, _BLOCK):
        places = min(_BLOCK, passages - first) * WORDS_A_PASSAGE
        size = int(places * probability + 6 * math.sqrt(places * probability) + 10)
        at = np.cumsum(rng.geometric(probability, size)) - 1
        assert at[-1] >= places
        of, times = np.unique(at[at < places] // WORDS_A_PASSAGE, return_counts=True)
        held.append((of + first).astype(np.int32))
        counts.append(times.astype(np.int32))
    return np.concatenate(held), np.concatenate(counts)


def write_postings(folder: Path, words: list[int], passages: int) -> Postings:
    """Postings of some words, mapped; the j-th word has the number j."""
    probabilities, rng = law(), np.random.default_rng(2)
    sizes, most = [0], []
    with open(folder / "passages", "wb") as numbers, open(folder / "scores", "wb") as scores:
        for word in words:
            held, counts = draw_word(rng, probabilities[word], passages)
            idf = math.log(1 + (passages - len(held) + 0.5) / (len(held) + 0.5))
            score_P = (idf * counts / (counts + K1)).astype(np.float32)
            held.tofile(numbers)
            score_P.tofile(scores)
            sizes.append(len(held))
            most.append(score_P.max(initial=0))
    mapped = (
        np.memmap(folder / name, dtype, "r").view(np.ndarray)
        for name, dtype in (("scores", np.float32), ("passages", np.int32))
    )
    return Postings(*mapped, np.cumsum(sizes), np.array(most, np.float32), passages)


def measure(passages: int, queries: int, k: int, folder: Path) -> None:
    asked = draw(np.random.default_rng(1), (queries, 6))
    words = sorted({word for row in asked for word in row})
    began = time.perf_counter()
    postings = write_postings(folder, words, passages)
    number_of = {word: number for number, word in enumerate(words)}
    counted = [Counter(number_of[word] for word in row) for row in asked]
    threads = len(os.sched_getaffinity(0))
    count, took = len(postings.passages_P), time.perf_counter() - began
    print(
        f"{passages:,} passages: {count:,} postings of {len(words):,} words, "
        f"{8 * count / 2**30:.1f} GiB, drawn in {took:.0f} s",
        flush=True,
    )
    searcher = Searcher(postings, threads)
    shares = [counted[first : first + _SHARE] for first in range(0, queries, _SHARE)]
    with ThreadPoolExecutor(threads) as pool:
        for name in ("first pass", "second pass"):
            processor, began = time.process_time(), time.perf_counter()
            list(pool.map(lambda some: [searcher.top(row, k) for row in some], shares))
            took, processor = time.perf_counter() - began, time.process_time() - processor
            print(
                f"  {name} (load {os.getloadavg()[0]:.1f}): {queries} queries on {threads} threads "
                f"in {took:.2f} s, {1e3 * processor / queries:.2f} ms of processor time a query",
                flush=True,
            )
    times = []
    for row in counted:
        began = time.thread_time()
        searcher.top(row, k)
        times.append(1e3 * (time.thread_time() - began))
    p50, p99 = np.percentile(times, [50, 99])
    print(f"  alone, processor time: mean {np.mean(times):.1f}, p50 {p50:.1f}, p99 {p99:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", default=f"1000000,{WIKIPEDIA}")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--folder", default="", help="for postings; a temporary one by default")
    args = parser.parse_args()
    for passages in map(int, args.passages.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
            measure(passages, args.queries, args.k, Path(folder))


if __name__ == "__main__":
    main()
