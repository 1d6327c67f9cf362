"""The passages of a corpus as the files of a `PassageStore`, in one process."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sr1_jax.retrieval.corpus import duplicate_id, no_passages, parse_passage
from sr1_jax.retrieval.corpus_files import read_chunks
from sr1_jax.retrieval.passages import PassageStore, encode_passage, join_passages


def write_passages(corpus: Path, folder: Path, progress: Callable[[float], None]) -> int:
    """Writes the passages of a corpus; memory is some 24 bytes a passage.

    Args:
        corpus: see `read_corpus`.
        folder: to put the files in.
        progress: told the share that is read.

    Returns:
        How many there are.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: a fault in the corpus, with its line.
    """
    sizes, lines, hashes, source = array("q"), array("q"), bytearray(), ""
    part = folder / "passages.part"
    with open(part, "wb") as file:
        for chunk in read_chunks(corpus):
            source = chunk.source
            for line, row in chunk.rows():
                passage_id, title, text = parse_passage(row, chunk.where(line))
                sizes.append(file.write(encode_passage(passage_id, title, text)))
                lines.append(line)
                # Ids are compared as text only where their hashes are equal.
                hashes += hashlib.blake2b(passage_id.encode("utf-8"), digest_size=8).digest()
            progress(chunk.share)
    if not sizes:
        raise no_passages(corpus)
    join_passages(folder, [part], np.frombuffer(sizes, np.int64))
    _check_ids(folder, np.frombuffer(bytes(hashes), np.uint64), lines, source)
    return len(sizes)


def _check_ids(folder: Path, hashes_N: np.ndarray, lines: array, source: str) -> None:
    distinct, counts = np.unique(hashes_N, return_counts=True)
    repeated = distinct[counts > 1]
    if not len(repeated):
        return
    passages = PassageStore(folder)
    first: dict[str, int] = {}
    for number in np.flatnonzero(np.isin(hashes_N, repeated)).tolist():
        passage_id, _, _ = passages[number]
        if passage_id in first:
            raise duplicate_id(f"{source}{lines[number]}", passage_id, first[passage_id])
        first[passage_id] = lines[number]
