"""Indexes that FAISS makes of the vectors: what they find, their file, and what is refused."""

import json
import os

import jax
import numpy as np
import pytest
from small_encoders import draw_texts, write_bert, write_corpus

from sr1_jax.models.encoder_folder import load_encoder
from sr1_jax.retrieval import faiss_search, open_retriever
from sr1_jax.retrieval.dense import DenseRetriever
from sr1_jax.retrieval.dense_search import VectorSearch
from sr1_jax.retrieval.faiss_search import FaissSearch, check_faiss, open_faiss
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.retrieval.vectors import Vectors, as_dtype
from sr1_jax.sharding import make_mesh

faiss = pytest.importorskip("faiss")
MANIFEST = dict(corpus_sha256="0" * 64, encoder="e", dtype="float32", vectors_sha256=None)


def settings(index="Flat", parameters=""):
    return {"faiss": index, "faiss_parameters": parameters}


def draw_vectors(count=600, width=16, seed=0):
    rng = np.random.default_rng(seed)
    vector_ND = rng.normal(size=(count, width)).astype(np.float32)
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def opened(folder, vectors, search, told=None):
    report = (lambda *what: told.append(what)) if told is not None else lambda *what: None
    return open_faiss(folder / "index", MANIFEST, vectors, search, report)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_exact_one_finds_what_the_devices_find(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(faiss_search, "_CHUNK", 250)
    vectors = Vectors.of(*as_dtype(draw_vectors(), dtype))
    queries = draw_vectors(9, seed=1)
    ours = VectorSearch(vectors, make_mesh(devices=jax.devices()[:1]))(queries, 5)
    told = []
    found = opened(tmp_path, vectors, settings(), told)(queries, 5)
    # Queries stay float32 here, and are rounded there.
    np.testing.assert_allclose(
        found.score_Bk, ours.score_Bk, atol=1e-6 if dtype == "float32" else 0.01
    )
    if dtype == "float32":
        np.testing.assert_array_equal(found.number_Bk, ours.number_Bk)
    assert [round(share, 2) for _, share in told] == [0.42, 0.83, 1.0]


@pytest.mark.parametrize(
    ("index", "parameters", "least"),
    [("HNSW16", "efSearch=64", 0.95), ("IVF8,Flat", "nprobe=8", 1.0), ("IVF8,Flat", "", 0.3)],
)
def test_approximate_ones_find_most(tmp_path, index, parameters, least):
    vector_ND, queries = draw_vectors(), draw_vectors(50, seed=1)
    search = opened(tmp_path, Vectors.of(vector_ND), settings(index, parameters))
    best_Bk = np.argsort(-(queries @ vector_ND.T), axis=1, kind="stable")[:, :5]
    found = search(queries, 5).number_Bk
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, best_Bk)])
    assert least <= recall and (index != "IVF8,Flat" or parameters or recall < 0.95)


def test_it_is_made_once_and_kept_beside_the_folder(tmp_path):
    vectors, told = Vectors.of(draw_vectors()), []
    first = opened(tmp_path, vectors, settings("IVF4,Flat"), told)
    assert {what for what, _ in told} == {faiss_search.TRAINING, faiss_search.ADDING}
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("index.IVF4_Flat.") and file.suffix == ".faiss"
    told.clear()
    again = opened(tmp_path, vectors, settings("IVF4,Flat", "nprobe=2"), told)
    assert told == []
    queries = draw_vectors(4, seed=1)
    want = first._index
    faiss.ParameterSpace().set_index_parameters(want, "nprobe=2")
    np.testing.assert_array_equal(
        FaissSearch(want)(queries, 3).number_Bk, again(queries, 3).number_Bk
    )
    # Of another encoder it is another one.
    open_faiss(
        tmp_path / "index", MANIFEST | {"encoder": "f"}, vectors, settings("IVF4,Flat"), print
    )
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(b"cut")
    with pytest.raises(
        ValueError, match=rf"{file.name} cannot be read: .*If it is damaged, delete"
    ):
        opened(tmp_path, vectors, settings("IVF4,Flat"))


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(index, path):
        open(path, "wb").close()
        raise RuntimeError("Error in f() at io.cpp:1: no space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError, match=r"search.faiss: .*\.faiss cannot be written: no space"):
        opened(tmp_path, Vectors.of(draw_vectors()), settings())
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written_none_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(faiss_search, "make_faiss", lambda *rest: pytest.fail("made"))
    with pytest.raises(PermissionError, match="where nothing can be written"):
        opened(tmp_path, Vectors.of(draw_vectors()), settings())


def test_edges(tmp_path):
    search = opened(tmp_path, Vectors.of(draw_vectors(40)), settings("IVF8,Flat", "nprobe=1"))
    found = search(draw_vectors(3, seed=1), 100)
    # One list of eight does not have 40 vectors.
    assert found.number_Bk.shape == (3, 40) and found.number_Bk[:, -1].tolist() == [-1] * 3
    assert search(np.zeros((0, 16), np.float32), 2).number_Bk.shape == (0, 2)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (settings("trees"), r"search.faiss=trees: FAISS makes no such index .*could not parse"),
        (settings("IDMap,Flat"), r"faiss=IDMap,Flat: .* It says: ids are the places of passages"),
        (settings("PQ5"), r"faiss=PQ5: .* vectors of 16 numbers; .* multiple of the number"),
        (settings("HNSW8", "nprobe=3"), r"faiss_parameters=nprobe=3: .*could not set parameter"),
        (settings("", "nprobe=3"), r"faiss_parameters=nprobe=3 says nothing without retrieval"),
    ],
)
def test_what_faiss_does_not_know(search, message):
    with pytest.raises(ValueError, match=message):
        check_faiss(search, 16)


def test_too_few_vectors_to_train_with(tmp_path):
    with pytest.raises(
        ValueError, match=r"IVF8,Flat cannot be trained with 5 vectors: .*points \(5\)"
    ):
        opened(tmp_path, Vectors.of(draw_vectors(5)), settings("IVF8,Flat"))


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(
        ValueError, match=r"faiss=HNSW8 needs FAISS: pip install 'sr1_jax\[faiss\]'"
    ):
        check_faiss(settings("HNSW8"), 16)


def test_as_a_retriever(tmp_path):
    """By the settings; what a list does not have is left out, and the fingerprint tells."""
    folder = write_bert(tmp_path / "small-bert")
    corpus = write_corpus(tmp_path / "corpus.jsonl", draw_texts(60))
    queries = draw_texts(7, seed=2)
    config = RETRIEVAL.defaults()
    config.kind, config.dense.encoder, config.dense.dtype = "dense", str(folder), "float32"
    plain = open_retriever(config, corpus, tmp_path / "index")
    config.dense.search.faiss = "Flat"
    exact = open_retriever(config, corpus, tmp_path / "index")
    assert [[p.id for p in found] for found in exact.search(queries, 4)] == [
        [p.id for p in found] for found in plain.search(queries, 4)
    ]
    config.dense.search.update(faiss="IVF6,Flat", faiss_parameters="nprobe=1")
    few = open_retriever(config, corpus, tmp_path / "index")
    counts = [len(found) for found in few.search(queries, 60)]
    assert max(counts) < 60 and min(counts) > 0
    assert len({r.fingerprint for r in (plain, exact, few)}) == 3
    # The folder may still be replaced, since the files are beside it.
    assert json.loads((tmp_path / "index" / "index.json").read_text())["files"].keys() == {
        path.name for path in (tmp_path / "index").iterdir() if path.name != "index.json"
    }
    encoder = load_encoder(folder)
    assert len(DenseRetriever.build(corpus, tmp_path / "index", encoder, dtype="int8")) == 60
