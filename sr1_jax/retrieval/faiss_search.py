"""Search by inner product with an index that FAISS makes of the vectors, on the host's processor.

Approximate indexes (HNSW, inverted lists, product quantisation) look at a small part of the
vectors, which pays on hosts without accelerators; the devices search all of them faster. Douze et
al. 2024 (arXiv 2401.08281) describe the library and the kinds. An index is made once and kept
beside the folder of the vectors; it is in the memory of every process that searches.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sr1_jax.paths import replacing
from sr1_jax.retrieval.bm25_build import Progress
from sr1_jax.retrieval.dense_search import Found
from sr1_jax.retrieval.vectors import Vectors

TRAINING, ADDING = "training FAISS's index", "adding to FAISS's index"
_FACTORY, _PARAMETERS = "retrieval.dense.search.faiss", "retrieval.dense.search.faiss_parameters"
_CHUNK = 65_536  # vectors added at a time
# k-means: more vectors a list than FAISS asks for at least (39), fewer than it takes (256).
_TRAINING_A_LIST, _TRAINING, _MOST_TRAINING = 64, 65_536, 2**23


class FaissSearch:
    """An index of FAISS, searched as `VectorSearch` is. Searches may come from several threads.

    Args:
        index: of FAISS, filled.
        parameters: of searches, as `faiss.ParameterSpace` reads them; empty: FAISS's own.
    """

    def __init__(self, index: Any, parameters: str = ""):
        if parameters:
            _set_parameters(index, parameters)
        self._index, self.count = index, index.ntotal

    def __call__(self, query_BD: np.ndarray, k: int) -> Found:
        """About the `k` best passages of each query, of equal scores any first.

        Args:
            query_BD: float32; any number of queries.
            k: at least 1.

        Returns:
            What was found, at most as many as there are. Where an index finds fewer, the last
            numbers are -1.
        """
        k = min(k, self.count)
        if not len(query_BD):
            return Found(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        return Found(*self._index.search(np.ascontiguousarray(query_BD, np.float32), k))


def check_faiss(search: Mapping[str, Any], width: int) -> None:
    """Refuses what FAISS makes no index of; makes none.

    Args:
        search: the settings `retrieval.dense.search`.
        width: of vectors.

    Raises:
        ValueError: naming the key.
    """
    if search["faiss"]:
        index = _empty(search["faiss"], width)
        if search["faiss_parameters"]:
            _set_parameters(index, search["faiss_parameters"])
    elif search["faiss_parameters"]:
        raise ValueError(
            f"{_PARAMETERS}={search['faiss_parameters']} says nothing without {_FACTORY}; name an "
            "index there, such as HNSW32, or leave it out."
        )


def open_faiss(
    folder: Path,
    manifest: Mapping[str, Any],
    vectors: Vectors,
    search: Mapping[str, Any],
    progress: Progress,
) -> FaissSearch:
    """Opens FAISS's index of the vectors of a folder; makes it first where it is not there.

    It is kept in a file beside the folder, since all that is in the folder belongs to its manifest.

    Args:
        folder: of the dense index.
        manifest: of the folder.
        vectors: of the folder.
        search: the settings `retrieval.dense.search`.
        progress: called with what is being done and the share of it that is done.

    Raises:
        ValueError: FAISS is not installed, knows no such index or parameters, cannot train it with
            so few vectors, or a file that it cannot read.
        OSError: the file cannot be written.
    """
    import faiss

    file = _file_beside(folder, manifest, search["faiss"])
    if file.is_file():
        try:
            index = faiss.read_index(str(file))
        except RuntimeError as error:
            raise ValueError(
                f"{_FACTORY}: {file} cannot be read: {_told(error)}. If it is damaged, delete it; "
                "it is made again."
            ) from error
    else:
        _check_writable(file)
        index = make_faiss(vectors, search["faiss"], progress)
        try:
            with replacing(file) as temporary:
                faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            raise OSError(f"{_FACTORY}: {file} cannot be written: {_told(error)}") from error
    return FaissSearch(index, search["faiss_parameters"])


def _check_writable(file: Path) -> None:
    # Before the hours that it takes to make one.
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(
            f"{_FACTORY} keeps its index in {file}, where nothing can be written: make it where "
            "that is possible (python -m sr1_jax.index --faiss), or copy the index elsewhere."
        )


def _file_beside(folder: Path, manifest: Mapping[str, Any], factory: str) -> Path:
    keys = ("corpus_sha256", "encoder", "dtype", "vectors_sha256")
    told = json.dumps([factory, *(manifest[key] for key in keys)])
    sha256 = hashlib.sha256(told.encode()).hexdigest()
    folder, kind = folder.resolve(), re.sub(r"[^A-Za-z0-9]+", "_", factory)
    return folder.with_name(f"{folder.name}.{kind}.{sha256[:12]}.faiss")


def make_faiss(vectors: Vectors, factory: str, progress: Progress) -> Any:
    """An index of FAISS with all vectors.

    Args:
        vectors: of a corpus.
        factory: as FAISS's index_factory names it.
        progress: called with what is being done and the share of it that is done.

    Raises:
        ValueError: see `open_faiss`.
    """
    import faiss

    index = _empty(factory, vectors.width)
    if not index.is_trained:
        progress(TRAINING, 0.0)
        try:
            index.train(_sample(vectors, faiss.try_extract_index_ivf(index)))
        except RuntimeError as error:
            raise ValueError(
                f"{_FACTORY}={factory} cannot be trained with {vectors.count:,} vectors: "
                f"{_told(error)}"
            ) from error
        progress(TRAINING, 1.0)
    for first in range(0, vectors.count, _CHUNK):
        last = min(first + _CHUNK, vectors.count)
        index.add(vectors.float32(first, last))
        progress(ADDING, last / vectors.count)
    return index


def _sample(vectors: Vectors, lists: Any) -> np.ndarray:
    """Vectors from all over the corpus, as many as k-means of so many lists wants."""
    wanted = max(_TRAINING, _TRAINING_A_LIST * lists.nlist if lists else 0)
    count = min(wanted, _MOST_TRAINING, vectors.count)
    sample_nD = np.empty((count, vectors.width), np.float32)
    for place, row in enumerate(np.linspace(0, vectors.count - 1, count).astype(int).tolist()):
        sample_nD[place] = vectors.float32(row, row + 1)[0]
    return sample_nD


def _empty(factory: str, width: int) -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{_FACTORY}={factory} needs FAISS: pip install 'sr1_jax[faiss]', or leave it empty."
        ) from error
    try:
        if factory.startswith("IDMap"):
            raise RuntimeError("ids are the places of passages here, IDMap has its own")
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"{_FACTORY}={factory}: FAISS makes no such index of vectors of {width} numbers; name "
            f"one as its index_factory does, such as HNSW32. It says: {_told(error)}"
        ) from error


def _set_parameters(index: Any, parameters: str) -> None:
    import faiss

    try:
        faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ValueError(
            f"{_PARAMETERS}={parameters}: name parameters of this index, separated by commas, such "
            f"as efSearch=128 (HNSW) or nprobe=16 (IVF). FAISS says: {_told(error)}"
        ) from error


def _told(error: Exception) -> str:
    """What FAISS says, without the function and the line of its sources."""
    return re.split(r"\.(?:cpp|h):\d+: ", str(error).strip())[-1]
