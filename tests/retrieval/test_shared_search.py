"""Vectors that processes share: what each of them finds is what one process finds."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_encoders import draw_texts, write_bert, write_corpus
from stores import Store

from sr1_jax.models.encoder_folder import load_encoder
from sr1_jax.retrieval import shared_search
from sr1_jax.retrieval.dense import DenseRetriever
from sr1_jax.retrieval.dense_search import VectorSearch
from sr1_jax.retrieval.shared_search import SharedSearch, part_of
from sr1_jax.retrieval.vectors import Vectors, as_dtype
from sr1_jax.sharding import make_mesh

WORKER = Path(__file__).parent / "shared_search_worker.py"
DEADLINE = 60


@pytest.fixture
def share(request):
    """Function that opens so many processes' ends of shared vectors, as if each were one."""

    def open_all(vectors, processes, **options):
        store, ends = Store(), []
        for process in range(processes):
            first, own = part_of(vectors, process, processes)
            search = VectorSearch(own, make_mesh(devices=jax.devices()[:2]), **options)
            coordination = SimpleNamespace(
                client=store, process_id=process, num_processes=processes,
                coordinator_address="localhost:1",
            )  # fmt: skip
            # In one process the ends would count each other.
            name = f"{request.node.name}-{processes}"
            shared_search._opened[name] = 0
            ends.append(SharedSearch(search, first, vectors.count, name, coordination))
        return ends

    return open_all


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("processes", [2, 3])
def test_finds_what_one_process_finds(share, processes, dtype):
    rng = np.random.default_rng(0)
    vector_ND = rng.normal(size=(157, 16)).astype(np.float32)
    vector_ND[140] = vector_ND[3]  # equal scores, in two parts
    vectors = Vectors.of(*as_dtype(vector_ND, dtype))
    query_BD = np.concatenate([rng.normal(size=(5, 16)), vector_ND[3:4]]).astype(np.float32)
    score_BN = query_BD.astype(np.float64) @ vectors.float32(0, 157).T
    for end in share(vectors, processes, batches=(4,), block=64):
        for k in (1, 7, 157, 400):  # more than a part has, and than there are
            found = end(query_BD, k)
            want_Bk = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
            if dtype == "float32":
                np.testing.assert_array_equal(found.number_Bk, want_Bk)
            scores = np.take_along_axis(score_BN, found.number_Bk, axis=1)
            np.testing.assert_allclose(
                found.score_Bk, scores, atol=0.1 if dtype == "int8" else 1e-5
            )
            assert found.number_Bk.shape == (6, min(k, 157))
        assert end(query_BD[:0], 3).number_Bk.shape == (0, 3)


def test_threads_of_all_processes_at_once(share):
    rng = np.random.default_rng(1)
    vectors = Vectors.of(rng.normal(size=(300, 8)).astype(np.float32))
    ends = share(vectors, 2, batches=(1, 8), block=64)
    query_BD = rng.normal(size=(40, 8)).astype(np.float32)
    want = ends[0](query_BD, 5).number_Bk
    wrong = []

    def ask(end, row):
        for _ in range(5):
            if (end(query_BD[row : row + 1], 5).number_Bk != want[row]).any():
                wrong.append(row)

    threads = [
        threading.Thread(target=ask, args=(ends[row % 2], row), daemon=True) for row in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_what_fails_in_another_process_is_told(share, monkeypatch):
    vectors = Vectors.of(np.eye(8, dtype=np.float32))
    one, other = share(vectors, 2, batches=(4,), block=64)

    def fail(query_BD, k):
        raise MemoryError("device full")

    monkeypatch.setattr(other, "_own", fail)
    with pytest.raises(RuntimeError, match=r"search of process 1 failed: MemoryError\('device"):
        one(np.ones((1, 8), np.float32), 2)


def test_fewer_passages_than_processes():
    with pytest.raises(ValueError, match="3 passages cannot be shared by 4 processes"):
        part_of(Vectors.of(np.eye(3, dtype=np.float32)), 1, 4)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(start_processes, tmp_path):
    encoder = write_bert(tmp_path / "small-e5")
    corpus = write_corpus(tmp_path / "corpus.jsonl", draw_texts(150))
    queries = draw_texts(40, seed=3)
    (tmp_path / "queries.json").write_text(json.dumps(queries))
    start_processes(
        lambda process, coordinator: (WORKER, tmp_path, coordinator, process), devices=2
    ).check()
    alone = DenseRetriever.build(
        corpus, tmp_path / "alone", load_encoder(encoder), dtype="float32",
        mesh=make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    want = [[(p.id, p.title, p.text) for p in found] for found in alone.search(queries, 5)]
    for process in range(2):
        told = json.loads((tmp_path / f"{process}.json").read_text())
        assert [[tuple(p) for p in found] for found in told["found"]] == want
        # A device holds its part of its process's part.
        assert told["rows"] <= 64 < len(alone)
        assert told["compiled_again"] == 0
