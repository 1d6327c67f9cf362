"""Dense retrieval: passages whose vectors are nearest to that of the query, by inner product.

Karpukhin et al. 2020 (arXiv 2004.04906): an encoder makes a vector of each passage once, and of
each query when it is asked. The encoder and all vectors are on the devices of this process; several
processes share the vectors (`shared_search`). The search is exact (`dense_search`), unless it is
left to an index of FAISS (`faiss_search`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sr1_jax.hosts.channel import coordination
from sr1_jax.models.encoder_folder import TextEncoder, load_encoder
from sr1_jax.models.encoder_recipe import Recipe
from sr1_jax.paths import local_path, path_or_none
from sr1_jax.remembered import note_sha256
from sr1_jax.retrieval.base import Passage, check_search
from sr1_jax.retrieval.bm25_build import Progress, no_progress
from sr1_jax.retrieval.corpus_files import corpus_sha256
from sr1_jax.retrieval.dense_build import FORMAT, VERSION, build_folder, read_folder
from sr1_jax.retrieval.dense_search import VectorSearch
from sr1_jax.retrieval.dispatch import Dispatch, one_at_a_time, own_devices
from sr1_jax.retrieval.embedder import Embedder
from sr1_jax.retrieval.faiss_search import check_faiss, open_faiss
from sr1_jax.retrieval.index_folder import memory_of, read_manifest
from sr1_jax.retrieval.passages import PassageStore
from sr1_jax.retrieval.settings import DENSE
from sr1_jax.retrieval.shared_search import SharedSearch, part_of
from sr1_jax.retrieval.vectors import Vectors

_PASSAGES = 64  # embedded at a time by each device


class DenseRetriever:
    """Dense search; make one with `build` or `load`. Searches may come from several threads.

    Attributes:
        manifest: what `index.json` records.
        embedder: makes vectors of queries.
        vectors: of the passages, as they are on disk.
        dispatch: runs each search's device programs, one search at a time; by default in the
            thread that searches. Replaced by who has to say when a device may be used, such as an
            engine whose main thread alone may start programs.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        embedder: Embedder,
        mesh: Mesh,
        *,
        mmap: bool = True,
        search: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ):
        self.manifest, self.embedder = manifest, embedder
        self.dispatch: Dispatch = one_at_a_time()
        self._options = _search_options(search)
        self._passages = PassageStore(folder, mmap=mmap)
        self.vectors = read_folder(folder, manifest["dtype"])
        self._cut, self._lock = 0, threading.Lock()
        if self._options["faiss"]:
            self._search = open_faiss(folder, manifest, self.vectors, self._options, progress)
            return
        # Not by its vectors: hosts that build it each for itself may round differently.
        name = hashlib.sha256(
            json.dumps([manifest[key] for key in ("corpus_sha256", "encoder", "dtype")]).encode()
        ).hexdigest()
        self._search = _vector_search(self.vectors, mesh, self._options, name)

    @property
    def corpus_sha256(self) -> str:
        """Of the corpus that was indexed."""
        return self.manifest["corpus_sha256"]

    @property
    def fingerprint(self) -> str:
        """Of corpus, encoder and options: equal where searches find the same, rounding apart."""
        keys = ("corpus_sha256", "encoder", "dtype", "vectors_sha256")
        told = [
            *(self.manifest[key] for key in keys),
            self.embedder.recipe.query_prefix,
            self._options["top_k"],
            self._options["recall"] if self._options["top_k"] == "approximate" else None,
        ]
        if self._options["faiss"]:
            told += [self._options["faiss"], self._options["faiss_parameters"]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._passages)

    def passage(self, number: int) -> Passage:
        """A passage by its place in the corpus, from 0; its score is 0."""
        return Passage(*self._passages[number], score=0.0)

    def counts(self) -> dict[str, float]:
        """Queries so far whose end was cut, since they were longer than the encoder takes."""
        return {"cut_queries": float(self._cut)}

    @classmethod
    def build(
        cls,
        corpus_path: str | os.PathLike,
        index_dir: str | os.PathLike,
        encoder: TextEncoder,
        *,
        dtype: str = "bfloat16",
        vectors: Path | None = None,
        mesh: Mesh | None = None,
        search: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> DenseRetriever:
        """Indexes a corpus and loads the index; a build that was interrupted goes on.

        The index appears in `index_dir` when it is complete, and only then replaces an older one.

        Args:
            corpus_path: see `read_corpus` for its forms.
            index_dir: a new or empty folder, or one that holds an older dense index.
            encoder: of `load_encoder`.
            dtype: that vectors are kept in: float32, bfloat16 or int8.
            vectors: a file of vectors made elsewhere, see `read_vectors`.
            mesh: devices that embed and search; all of this process by default.
            search: settings `retrieval.dense.search`, or some of them.
            progress: called with what is being done and the share of it that is done.

        Raises:
            FileNotFoundError, ValueError: see `build_folder`.
        """
        mesh = mesh or own_devices()
        check_faiss(_search_options(search), encoder.width)
        options = {"dtype": dtype, "vectors": vectors, "mesh": mesh, "progress": progress}
        build_index(corpus_path, index_dir, encoder, **options)
        return cls.load(index_dir, encoder, mesh=mesh, search=search, progress=progress)

    @classmethod
    def load(
        cls,
        index_dir: str | os.PathLike,
        encoder: TextEncoder,
        *,
        mesh: Mesh | None = None,
        search: Mapping[str, Any] | None = None,
        mmap: bool = True,
        progress: Progress = no_progress,
    ) -> DenseRetriever:
        """Opens an index.

        Args:
            index_dir: where `build` put it.
            encoder, mesh, search: as for `build`.
            mmap: map the passages instead of reading them into memory.
            progress: called while an index of FAISS is made that is not there yet.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder is no dense index, is damaged, of another version or of another
                encoder; see `open_faiss`.
        """
        check_faiss(_search_options(search), encoder.width)
        index_dir, mesh = Path(index_dir), mesh or own_devices()
        manifest = read_manifest(index_dir, kind=FORMAT, version=VERSION)
        if manifest["encoder"] != encoder.fingerprint:
            raise ValueError(
                f"{index_dir} was built with another encoder than {encoder.path}, or with another "
                "pooling, length or prefix of passages: set retrieval.dense.* to those of the "
                "index, or build it again."
            )
        embedder = Embedder(encoder, mesh, _search_options(search)["batches"])
        options = {"search": search, "mmap": mmap, "progress": progress}
        return cls(index_dir, manifest, embedder, mesh, **options)

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """Finds the `k` best passages for each query.

        Args:
            queries: any strings; what is longer than the encoder takes is cut, and counted.
            k: passages a query, at least 1; may exceed the corpus.

        Returns:
            One list a query, best first, equal scores in corpus order; `k` passages each, or the
            whole corpus. An index of FAISS has equal scores in any order, and may find fewer.

        Raises:
            ValueError: `k` is less than 1, or `queries` is not a list of strings.
        """
        check_search(queries, k)
        if not queries:
            return []
        if self._options["faiss"]:  # runs on the host: several searches at a time
            found = self._search(self.dispatch(lambda: self._vectors_of(queries)), k)
        else:
            found = self.dispatch(lambda: self._search(self._vectors_of(queries), k))
        return [
            [
                Passage(*self._passages[number], score=score)
                for number, score in zip(*of_query)
                if number >= 0
            ]
            for of_query in zip(found.number_Bk.tolist(), found.score_Bk.tolist())
        ]

    def _vectors_of(self, queries: list[str]) -> np.ndarray:
        vector_BD, cut = self.embedder.queries(queries)
        with self._lock:
            self._cut += cut
        return vector_BD


def build_index(
    corpus_path: str | os.PathLike,
    index_dir: str | os.PathLike,
    encoder: TextEncoder,
    *,
    dtype: str = "bfloat16",
    vectors: Path | None = None,
    mesh: Mesh | None = None,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], Vectors]:
    """Builds an index as `DenseRetriever.build` does, but puts nothing of it on the devices.

    Returns:
        What its `index.json` records, and its vectors, mapped.
    """
    mesh, index_dir = mesh or own_devices(), Path(index_dir)
    embedder = Embedder(encoder, mesh, (_PASSAGES * mesh.size,))
    options = {"dtype": dtype, "vectors": vectors, "progress": progress}
    build_folder(Path(corpus_path), index_dir, embedder, **options)
    manifest = read_manifest(index_dir, kind=FORMAT, version=VERSION)
    return manifest, read_folder(index_dir, manifest["dtype"])


def _search_options(search: Mapping[str, Any] | None) -> dict[str, Any]:
    """All settings `retrieval.dense.search`: those given, and of the others the defaults."""
    return dict(DENSE.defaults().search) | dict(search or {})


def _vector_search(
    vectors: Vectors, mesh: Mesh, options: Mapping[str, Any], name: str
) -> VectorSearch | SharedSearch:
    """The search on the devices of this process: over all vectors, or over its part of them where
    several processes share them."""
    given = {key: options[key] for key in ("recall", "block", "batches")}
    given["approximate"] = options["top_k"] == "approximate"
    processes = jax.process_count()
    if processes == 1:
        return VectorSearch(vectors, mesh, **given)
    first, own = part_of(vectors, jax.process_index(), processes)
    return SharedSearch(
        VectorSearch(own, mesh, **given), first, vectors.count, name, coordination()
    )


def open_dense(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> DenseRetriever:
    """The dense index in a folder; built there if it is not, or is of another corpus.

    Args:
        config: has the section `dense`.
        corpus: see `read_corpus`. Without one the index has to be there.
        index: the folder. Without one the index is built in a temporary folder and kept in memory.

    Raises:
        FileNotFoundError: there is no such corpus, or no index and no corpus to build it of.
        ValueError: neither corpus nor index is given; an option out of range; an index of another
            encoder or dtype; a fault in the encoder, the corpus or the index.
    """
    check_dense(config)
    options = config["dense"]
    if corpus is None and index is None:
        raise ValueError("Dense retrieval needs a corpus, or the folder of an index of one.")
    encoder = encoder_of(options)
    search = dict(options["search"])
    build = {
        "dtype": options["dtype"],
        "vectors": path_or_none(options["vectors"], "retrieval.dense.vectors"),
        "search": search,
    }
    if index is None:
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "index"
            check_faiss(search, encoder.width)
            build_index(corpus, built, encoder, dtype=build["dtype"], vectors=build["vectors"])
            return DenseRetriever.load(built, encoder, search=search, mmap=False)
    if corpus is None:
        return _load_of(index, encoder, options["dtype"], search)
    if _is_built_of(index, corpus, encoder, build):
        return DenseRetriever.load(index, encoder, search=search)
    began = time.time()
    retriever = DenseRetriever.build(corpus, index, encoder, **build)
    note_sha256(corpus, memory_of(index), retriever.corpus_sha256, read_since=began)
    return retriever


def encoder_of(options: Mapping[str, Any]) -> TextEncoder:
    """The encoder that the settings `retrieval.dense` name.

    Raises:
        ValueError: see `load_encoder`.
    """
    recipe = [field.name for field in dataclasses.fields(Recipe)]
    folder = local_path(options["encoder"], "retrieval.dense.encoder")
    return load_encoder(
        folder, dtype=options["encoder_dtype"], **{key: options[key] for key in recipe}
    )


def open_as_built(index: Path) -> DenseRetriever:
    """A dense index with the encoder that it was built with, from where that was then.

    Raises:
        FileNotFoundError, ValueError: see `DenseRetriever.load` and `load_encoder`.
    """
    manifest = read_manifest(index, kind=FORMAT, version=VERSION)
    encoder = load_encoder(manifest["encoder_path"], **manifest["recipe"])
    return DenseRetriever.load(index, encoder)


def _load_of(
    index: Path, encoder: TextEncoder, dtype: str, search: dict[str, Any]
) -> DenseRetriever:
    kept = read_manifest(index, kind=FORMAT, version=VERSION)["dtype"]
    if kept != dtype:
        raise ValueError(
            f"{index} keeps its vectors as {kept}, but retrieval.dense.dtype is {dtype}: set it to "
            "that of the index, or build the index again."
        )
    return DenseRetriever.load(index, encoder, search=search)


def _is_built_of(index: Path, corpus: Path, encoder: TextEncoder, build: Mapping[str, Any]) -> bool:
    """Whether a folder holds a whole index of all that, in today's form.

    Raises:
        ValueError: it holds one of other settings, which took hours and is not replaced.
    """
    try:
        manifest = read_manifest(index, kind=FORMAT, version=VERSION)
    except (FileNotFoundError, ValueError):
        return False  # whether it may be replaced is for `build` to say
    if differences := _differences(manifest, encoder, build):
        raise ValueError(
            f"{index} differs from the settings in retrieval.dense.{differences[0]}: set that as "
            "the index has it, name another folder, or build it again with python -m sr1_jax.index."
        )
    if not corpus.exists():
        return False
    return manifest["corpus_sha256"] == corpus_sha256(corpus, memory_of(index))


def _differences(
    manifest: Mapping[str, Any], encoder: TextEncoder, build: Mapping[str, Any]
) -> list[str]:
    """The settings by which an index differs from what would be built; which corpus apart."""
    vectors = build["vectors"]
    found = {
        "encoder, or its pooling, length or prefix of passages": (
            manifest["encoder"] != encoder.fingerprint
        ),
        f"dtype={build['dtype']} (it keeps {manifest['dtype']})": (
            manifest["dtype"] != build["dtype"]
        ),
        # Vectors that are there were compared with the encoder's: none need be named again.
        f"vectors={vectors} (it has {manifest['vectors']})": (
            vectors is not None and manifest["vectors"] != vectors.name
        ),
    }
    return [difference for difference, there in found.items() if there]


def check_dense(config: Mapping[str, Any]) -> None:
    """Refuses settings that no dense index can be opened with; reads nothing.

    Raises:
        ValueError: naming the key.
    """
    if unread := sorted(config.get("options", {})):
        raise ValueError(
            f"retrieval.options.{unread[0]}: dense takes no options; its settings are "
            "retrieval.dense.*."
        )
    folder = config["dense"]["encoder"]
    if not folder:
        raise ValueError(
            "retrieval.dense.encoder is empty; name the folder of an encoder, such as that of "
            "E5, BGE or MiniLM with config.json and *.safetensors."
        )
    if not local_path(folder, "retrieval.dense.encoder").is_dir():
        raise ValueError(f"retrieval.dense.encoder={folder}: there is no such folder.")
