"""Builds the folder of a dense index, and goes on with a build that was interrupted.

    vectors.npy     [N, D] float32, int8, or the bits of bfloat16 as uint16
    scales.npy      [N] float32, of int8 alone
    passages.jsonl, passage_offsets.npy    see `passages`
    index.json      see `index_folder`

Until it is complete, all that is in `.NAME.partial` beside the folder NAME. `state.json` there says
what is being built and how far it is; vectors are on disk before it counts them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sr1_jax.lock import lock_workdir
from sr1_jax.paths import sha256_of, write_whole
from sr1_jax.retrieval.bm25_build import Progress, no_progress
from sr1_jax.retrieval.corpus_files import corpus_sha256
from sr1_jax.retrieval.embedder import Embedder
from sr1_jax.retrieval.index_folder import (
    DENSE_FORMAT,
    check_replaceable,
    put_in_place,
    write_manifest,
)
from sr1_jax.retrieval.passage_build import write_passages
from sr1_jax.retrieval.passages import PassageStore
from sr1_jax.retrieval.vector_files import read_vectors
from sr1_jax.retrieval.vectors import Vectors, as_dtype

FORMAT, VERSION = DENSE_FORMAT, 1
READING, EMBEDDING = "reading passages", "embedding"
_STATE, _VECTORS, _SCALES = "state.json", "vectors.npy", "scales.npy"
_CHUNK = 4096  # passages between two saves of the state
_SAMPLE = 16  # passages by which vectors made elsewhere are compared with the encoder's


def build_folder(
    corpus: Path,
    index_dir: Path,
    embedder: Embedder,
    *,
    dtype: str,
    vectors: Path | None = None,
    progress: Progress = no_progress,
    chunk: int = _CHUNK,
) -> None:
    """Builds an index. What a build before left undone is gone on with if it was of the same.

    Args:
        corpus: see `read_corpus`.
        index_dir: new, empty, or one that holds an older dense index.
        embedder: makes the vectors.
        dtype: that they are kept in, of `vectors.DTYPES`.
        vectors: vectors made elsewhere, in the order of the corpus; see `read_vectors`.
        progress: called with what is being done and the share of it that is done.
        chunk: passages embedded at a time.

    Raises:
        FileNotFoundError: there is no corpus or no file of vectors.
        ValueError: a fault in the corpus, an `index_dir` that holds something else or is being
            built by another process, or vectors that are not those of corpus and encoder.
    """
    check_replaceable(index_dir, kind=FORMAT)
    if not corpus.exists():
        raise FileNotFoundError(f"{corpus}: no such file; name a corpus.")
    ready = None if vectors is None else read_vectors(vectors)
    if ready is not None and ready.width != embedder.width:
        raise ValueError(
            f"retrieval.dense.vectors={vectors}: vectors have {ready.width} numbers, those of the "
            f"encoder {embedder.width}; they are not of this encoder."
        )
    target = index_dir.resolve()
    partial = target.with_name(f".{target.name}.partial")
    with lock_workdir(partial):
        fields = {
            "corpus_sha256": corpus_sha256(corpus),
            "encoder": embedder.fingerprint,
            "dtype": dtype,
            "vectors": None if vectors is None else vectors.name,
            "vectors_sha256": None if vectors is None else sha256_of(vectors),
        }
        build = _Build(partial, fields)
        build.read_passages(corpus, progress)
        source = _embedded(embedder) if ready is None else _copied(vectors, ready, build, embedder)
        build.fill(source, embedder.width, dtype, chunk, progress)
        about = {"format": FORMAT, "version": VERSION, **fields, "corpus": corpus.name}
        about |= {
            "encoder_path": str(embedder.path.resolve()),
            "recipe": dataclasses.asdict(embedder.recipe),
            "width": embedder.width,
        }
        write_manifest(build.folder, about | build.totals())
        put_in_place(build.folder, target)
    shutil.rmtree(partial)


# Passages (title, text) and the number of the first -> their vectors, and how many were cut.
Source = Callable[[list[tuple[str, str]], int], tuple[np.ndarray, int]]


def _embedded(embedder: Embedder) -> Source:
    return lambda passages, first: tuple(embedder.passages(passages))


def _copied(file: Path, ready: Vectors, build: _Build, embedder: Embedder) -> Source:
    """Vectors of a file, once they have been compared with the encoder's of some passages.

    Vectors of texts put together in another way are a little off, so what has to hold is that
    most passages are nearer to themselves than to the other ones of the sample.
    """
    count = len(build.passages)
    if ready.count != count:
        raise ValueError(
            f"retrieval.dense.vectors={file}: holds {ready.count} vectors, the corpus {count} "
            "passages; they are not of this corpus."
        )
    numbers = np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist()
    texts = [build.passages[number][1:] for number in numbers]
    found_nD = np.concatenate([ready.float32(number, number + 1) for number in numbers])
    own_nD = embedder.passages(texts).vector_ND
    like_nn = _unit(own_nD) @ _unit(found_nD).T
    own = np.diagonal(like_nn)
    # A passage that stands in the corpus twice is as near to its twin.
    if np.mean(own >= like_nn.max(axis=1) - 1e-6) <= 0.5 or own.mean() < 0.8:
        raise ValueError(
            f"retrieval.dense.vectors={file}: of {len(numbers)} passages the encoder's vectors are "
            f"like those of the file by a cosine of {own.mean():.2f}: they are of another encoder, "
            "or another order of the corpus."
        )
    return lambda passages, first: (ready.float32(first, first + len(passages)), 0)


def _unit(x_nD: np.ndarray) -> np.ndarray:
    return x_nD / np.maximum(np.linalg.norm(x_nD, axis=1, keepdims=True), 1e-12)


class _Build:
    """What has been built in a folder, and what is left to do.

    Args:
        partial: the folder, to which state and index are written.
        fields: what is being built; whatever is there of something else is removed.
    """

    def __init__(self, partial: Path, fields: dict[str, Any]):
        self.folder = partial / "index"
        self._state_file = partial / _STATE
        fingerprint = hashlib.sha256(json.dumps([VERSION, fields]).encode()).hexdigest()
        try:
            self._state = json.loads(self._state_file.read_text(encoding="utf-8"))
            same = self._state["fingerprint"] == fingerprint
        except (OSError, ValueError, KeyError):
            same = False
        if not same:
            self._state_file.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._state = {"fingerprint": fingerprint, "done": 0, "cut": 0}
        self.folder.mkdir(exist_ok=True)

    def totals(self) -> dict[str, int]:
        return {"passages": self._state["done"], "cut_passages": self._state["cut"]}

    def read_passages(self, corpus: Path, progress: Progress) -> None:
        if "passages" not in self._state:
            count = write_passages(corpus, self.folder, lambda share: progress(READING, share))
            self._save(passages=count)
        self.passages = PassageStore(self.folder)

    def fill(self, source: Source, width: int, dtype: str, chunk: int, progress: Progress) -> None:
        count = len(self.passages)
        kept = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[dtype]
        values_ND = self._mapped(_VECTORS, kept, (count, width))
        scale_N = self._mapped(_SCALES, np.float32, (count,)) if dtype == "int8" else None
        progress(EMBEDDING, self._state["done"] / count)
        for first in range(self._state["done"], count, chunk):
            last = min(first + chunk, count)
            vector_nD, cut = source([self.passages[i][1:] for i in range(first, last)], first)
            _check_finite(vector_nD, first, self.passages)
            values_nD, scales_n = as_dtype(vector_nD, dtype)
            values_ND[first:last] = values_nD.view(kept)
            values_ND.flush()
            if scale_N is not None:
                scale_N[first:last] = scales_n
                scale_N.flush()
            self._save(done=last, cut=self._state["cut"] + cut)
            progress(EMBEDDING, last / count)

    def _mapped(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        if self._state["done"]:
            return np.lib.format.open_memmap(path, "r+")
        return np.lib.format.open_memmap(path, "w+", dtype, shape)

    def _save(self, **changes: int) -> None:
        self._state |= changes
        write_whole(self._state_file, json.dumps(self._state))


def _check_finite(vector_nD: np.ndarray, first: int, passages: PassageStore) -> None:
    bad = ~np.isfinite(vector_nD).all(axis=1)
    if bad.any():
        number = first + int(bad.argmax())
        raise ValueError(
            f"The vector of passage {number} (id {passages[number][0]!r}) holds numbers that are "
            "not finite; the encoder or the file of vectors is damaged."
        )


def read_folder(folder: Path, dtype: str) -> Vectors:
    """The vectors of an index, mapped."""
    values_ND = np.load(folder / _VECTORS, mmap_mode="r")
    if dtype == "bfloat16":
        import ml_dtypes

        values_ND = values_ND.view(ml_dtypes.bfloat16)
    scale_N = np.load(folder / _SCALES, mmap_mode="r") if dtype == "int8" else None
    return Vectors.of(values_ND, scale_N)
