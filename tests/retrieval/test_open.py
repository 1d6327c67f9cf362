"""Retrievers by name and by import path, and what an index is held to."""

import json

import jax
import pytest

from sr1_jax.retrieval import BM25Retriever, Passage, check_retrieval, fingerprint_of
from sr1_jax.retrieval import open_retriever as open_
from sr1_jax.retrieval.open import leave_accelerators
from sr1_jax.retrieval.settings import RETRIEVAL

BM25 = {"kind": "bm25", "k1": 0.9, "b": 0.4, "stemmer": "english", "stopwords": "en", "options": {}}


class Echo:
    """A retriever of the user's own: finds the query, as often as its option says."""

    fingerprint = "echo"

    def __init__(self, config, corpus, index):
        self.given = config, corpus, index

    def search(self, queries, k):
        times = self.given[0]["options"]["times"]
        return [[Passage(q, q, q, 1.0)] * min(times, k) for q in queries]


def no_retriever(config, corpus, index):
    return "a string"


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "corpus.jsonl", "the cat runs", "a dog barks")


def write(path, *texts):
    rows = ({"id": str(i), "contents": f"T{i}\n{text}"} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(retriever, query):
    return [passage.id for passage in retriever.search([query], 3)[0]]


def test_ones_own_by_import_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_search.py").write_text("from test_open import Echo as make\n")
    config = BM25 | {"kind": "my_search:make", "options": {"times": 2}}
    retriever = open_(config, tmp_path / "corpus", tmp_path / "index")
    assert retriever.given == (config, tmp_path / "corpus", tmp_path / "index")
    assert ids(retriever, "hello") == ["hello"] * 2
    assert open_(config).given == (config, None, None)
    assert fingerprint_of(retriever) == "echo"
    check_retrieval(config)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bm52", r"retrieval\.kind='bm52': .* choose one of bm25, .*Did you mean bm25\?"),
        (
            "google",
            r"retrieval\.kind='google': .* one of bm25, dense, hybrid, empty, http, web, or g",
        ),
        ("nowhere:make", r"retrieval\.kind='nowhere:make': there is no module nowhere"),
        ("json:make", r"retrieval\.kind='json:make': make is not there"),
    ],
)
def test_a_kind_that_is_not_there(kind, message):
    for call in (check_retrieval, open_):
        with pytest.raises(ValueError, match=message):
            call(BM25 | {"kind": kind})


def test_what_is_no_retriever_is_refused():
    with pytest.raises(ValueError, match=r"returned a str, which has no method search"):
        open_(BM25 | {"kind": "test_open:no_retriever"})


def test_an_index_is_built_once(corpus, tmp_path, monkeypatch):
    index = tmp_path / "index"
    first = open_(BM25, corpus, index)
    assert ids(first, "running") == ["0"]
    with monkeypatch.context() as patch:
        patch.setattr(BM25Retriever, "build", None)
        again = open_(BM25, corpus, index)
        alone = open_(BM25, None, index)
    assert first.fingerprint == again.fingerprint == alone.fingerprint
    assert ids(alone, "running") == ["0"]


def test_another_corpus_or_other_options_build_it_again(corpus, tmp_path):
    index = tmp_path / "index"
    before = open_(BM25, corpus, index).fingerprint
    harder = open_(BM25 | {"k1": 2.0}, corpus, index)
    assert harder.manifest["k1"] == 2.0
    write(corpus, "a bird sings")
    other = open_(BM25 | {"k1": 2.0}, corpus, index)
    assert ids(other, "bird") == ["0"] and ids(other, "cat") == []
    assert len({before, harder.fingerprint, other.fingerprint}) == 3


def test_none_is_a_word_for_flags(corpus, tmp_path):
    """It was passed on as the name of a stemmer where worlds were built."""
    retriever = open_(BM25 | {"stemmer": "none", "stopwords": "None"}, corpus)
    assert retriever.manifest["stemmer"] is retriever.manifest["stopwords"] is None
    assert ids(retriever, "running") == [] and ids(retriever, "the") == ["0"]


def test_without_a_folder_it_is_kept_in_memory(corpus):
    retriever = open_(BM25, corpus)
    corpus.unlink()
    assert ids(retriever, "barking") == ["1"]


def test_an_index_alone_has_to_have_the_options(corpus, tmp_path):
    open_(BM25, corpus, tmp_path / "index")
    with pytest.raises(ValueError, match=r"index was built with b=0\.4, but retrieval\.b is 0\.7"):
        open_(BM25 | {"b": 0.7}, None, tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="none: no such index; build it with"):
        open_(BM25, None, tmp_path / "none")


def test_nothing_to_search(tmp_path):
    with pytest.raises(ValueError, match="BM25 needs a corpus, or the folder of an index"):
        open_(BM25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stemmer": "klingon"}, r"retrieval: no stemmer 'klingon'"),
        ({"stopwords": "klingon"}, r"retrieval: stopwords: klingon"),
        ({"k1": float("nan")}, r"retrieval: k1 must be a number"),
    ],
)
def test_bad_options_are_found_before_anything_is_opened(change, message):
    with pytest.raises(ValueError, match=message):
        check_retrieval(BM25 | change)


def test_a_retriever_that_does_not_say_what_it_is():
    assert fingerprint_of(object()) == ""


@pytest.mark.parametrize(
    ("changes", "kept_off"),
    [
        ({}, True),
        ({"kind": "http"}, True),
        ({"kind": "dense"}, False),
        ({"kind": "hybrid"}, False),
        ({"kind": "own.module:factory"}, False),
        ({"rerank.model": "/models/bge-reranker"}, False),
    ],
)
def test_who_needs_an_accelerator(changes, kept_off, monkeypatch):
    config = RETRIEVAL.defaults()
    config.update_from_flattened_dict(changes)
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *what: asked.append(what))
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    leave_accelerators(config)
    assert asked == []  # the user has said which
    monkeypatch.delenv("JAX_PLATFORMS")
    leave_accelerators(config)
    assert asked[-1:] == ([("jax_platforms", "cpu")] if kept_off else [])
