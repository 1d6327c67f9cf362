"""Builds a BM25 index of a corpus on all cores, in bounded memory.

Each chunk of the corpus is counted in one of several processes (`bm25_runs`); then the runs are
merged (`bm25_merge`). The files are the same however many processes there were.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sr1_jax.retrieval.bm25_merge import merge_runs
from sr1_jax.retrieval.bm25_runs import CountWords, Run
from sr1_jax.retrieval.corpus import duplicate_id, no_passages
from sr1_jax.retrieval.corpus_files import corpus_sha256, read_chunks
from sr1_jax.retrieval.passages import PassageStore, join_passages
from sr1_jax.retrieval.processes import map_numbered

# Called with what is being done and the share of it that is done, 0 to 1.
Progress = Callable[[str, float], None]
COUNTING, MERGING = "counting words", "merging"


def no_progress(what: str, share: float) -> None:
    """Tells nobody."""


def build_index(
    corpus: Path,
    folder: Path,
    *,
    k1: float,
    b: float,
    stemmer: str | None,
    stopwords: str | None,
    workers: int,
    progress: Progress = no_progress,
) -> dict[str, str | int]:
    """Writes the files of an index, but for its manifest.

    Args:
        corpus: see `read_corpus`.
        folder: empty, for the index.
        k1: saturation of word counts.
        b: strength of length normalisation.
        stemmer: a Snowball algorithm, or None.
        stopwords: a list of bm25s, or None.
        workers: processes, at least 1.
        progress: told how far it is.

    Returns:
        corpus_sha256 and passages, for the manifest.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: a fault in the corpus, with its line, or a corpus without a word.
    """
    chunks = read_chunks(corpus)
    temporary = folder / "runs"
    temporary.mkdir()
    count_words = CountWords(temporary, stemmer, stopwords)
    runs: list[Run] = []
    with ThreadPoolExecutor(1) as hashing:
        # Beside the rest: it leaves Python to others while it reads.
        digest = hashing.submit(corpus_sha256, corpus)
        for run in map_numbered(count_words, chunks, workers):
            progress(COUNTING, run.share)
            runs.append(run)
        runs = [run for run in runs if run.passages]
        if not runs:
            raise no_passages(corpus)
        sizes_N = np.concatenate([run.load("sizes") for run in runs])
        join_passages(folder, [run.path("passages") for run in runs], sizes_N)
        _check_ids(runs, folder)
        words = merge_runs(
            runs, folder, k1=k1, b=b, workers=workers,
            progress=lambda share: progress(MERGING, share),
        )  # fmt: skip
        if not words:
            raise ValueError(f"{corpus}: no passage holds a word that can be indexed.")
        shutil.rmtree(temporary)
        return {"corpus_sha256": digest.result(), "passages": len(sizes_N)}


def _check_ids(runs: list[Run], folder: Path) -> None:
    """Refuses a corpus in which two passages have one id.

    Ids are compared by hashes of 64 bits, and as text only where those are equal: as text they
    would take gigabytes.
    """
    hashes_N = np.concatenate([run.load("ids") for run in runs])
    ordered = np.sort(hashes_N)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(repeated):
        return
    lines_N = np.concatenate([run.load("lines") for run in runs])
    passages = PassageStore(folder)
    first: dict[str, int] = {}
    for index in np.flatnonzero(np.isin(hashes_N, repeated)).tolist():
        passage_id, _, _ = passages[index]
        line = int(lines_N[index])
        if passage_id in first:
            raise duplicate_id(f"{runs[0].source}{line}", passage_id, first[passage_id])
        first[passage_id] = line
