"""The dense retriever: what it finds, its folder, builds that go on, and its settings."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from small_encoders import draw_texts, write_bert, write_corpus

from sr1_jax.models.encoder_folder import load_encoder
from sr1_jax.retrieval import (
    Retriever,
    check_retrieval,
    index_settings,
    open_retriever,
)
from sr1_jax.retrieval import dense_build as building
from sr1_jax.retrieval.dense import DenseRetriever
from sr1_jax.retrieval.embedder import Embedder
from sr1_jax.retrieval.open import open_as_built
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.retrieval.vector_files import write_faiss, write_npy
from sr1_jax.retrieval.vectors import Vectors
from sr1_jax.sharding import make_mesh

TEXTS = [*draw_texts(150), "the cat run", "the cat run"]
QUERIES = ["who wrote hamlet", "the cat", "", *draw_texts(6, seed=1)]
SEARCH = {"batches": (4,), "block": 64}


def mesh_of(devices):
    return make_mesh(devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("models") / "small-e5")


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder, passage_prefix="passage : ", query_prefix="query : ")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "corpus.jsonl", TEXTS)


def vectors_one_by_one(encoder, texts):
    """Each text in a batch of its own."""
    embed = jax.jit(encoder.embed)
    found = []
    for text in texts:
        ids = encoder.tokenizer.encode(text).ids
        ids_1T, length_1 = np.zeros((1, 32), np.int32), np.array([len(ids)], np.int32)
        ids_1T[0, : len(ids)] = ids
        found.append(np.asarray(embed(encoder.params, ids_1T, length_1))[0])
    return np.stack(found)


@pytest.fixture(scope="module")
def own_vectors(encoder):
    return vectors_one_by_one(
        encoder, [f"passage : title {i % 10} {text}" for i, text in enumerate(TEXTS)]
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_finds_what_is_nearest(tmp_path, corpus, encoder, own_vectors, devices):
    retriever = DenseRetriever.build(
        corpus, tmp_path / "index", encoder, dtype="float32", mesh=mesh_of(devices), search=SEARCH
    )
    assert isinstance(retriever, Retriever)
    queries = vectors_one_by_one(encoder, [f"query : {query}" for query in QUERIES])
    score_BN = queries @ own_vectors.T
    for scores, found in zip(score_BN, retriever.search(QUERIES, 5)):
        best = np.sort(scores)[::-1][:5]
        np.testing.assert_allclose([p.score for p in found], best, atol=1e-5)
        for passage in found:
            number = int(passage.id[1:])
            assert passage.text == TEXTS[number] and passage.title == f"title {number % 10}"
            np.testing.assert_allclose(passage.score, scores[number], atol=1e-5)
    assert len(retriever.search(["the cat"], 1000)[0]) == len(TEXTS) == len(retriever)
    assert retriever.passage(3).id == "p3"
    assert retriever.search([], 3) == []


def test_batches_and_lengths_change_nothing(encoder):
    texts = draw_texts(30, longest=20)
    expected = vectors_one_by_one(encoder, texts)
    for devices, batches in ((1, (4,)), (8, (1, 16))):
        embedder = Embedder(encoder, mesh_of(devices), batches)
        found = embedder.embed(texts)
        np.testing.assert_allclose(found.vector_ND, expected, atol=1e-5)
        embedder.embed(texts[:3])
        before = embedder._embed._cache_size()
        embedder.embed(texts[::-1])
        assert embedder._embed._cache_size() == before


def test_what_is_cut_is_counted(tmp_path, folder):
    short = load_encoder(folder, max_tokens=8)
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["a", "the cat run of paris who wrote hamlet"])
    retriever = DenseRetriever.build(corpus, tmp_path / "index", short, mesh=mesh_of(1))
    assert retriever.manifest["cut_passages"] == 1
    retriever.search(["the cat", "the cat run of paris who wrote"], 1)
    assert retriever.counts() == {"cut_queries": 1.0}
    # The end is cut, not the closing token.
    ids = short.tokenizer.encode("the cat run of paris who wrote hamlet").ids
    assert len(ids) == 8 and ids[-1] == short.tokenizer.token_to_id("[SEP]")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_dtypes_are_kept_on_disk(tmp_path, corpus, encoder, own_vectors, dtype):
    DenseRetriever.build(corpus, tmp_path / "index", encoder, dtype=dtype, mesh=mesh_of(8))
    vectors = building.read_folder(tmp_path / "index", dtype)
    assert vectors.dtype == dtype
    np.testing.assert_allclose(vectors.float32(0, len(TEXTS)), own_vectors, atol=0.004)
    assert np.load(tmp_path / "index" / "vectors.npy").itemsize == {"bfloat16": 2, "int8": 1}[dtype]


def test_a_build_goes_on_where_it_was_interrupted(tmp_path, corpus, encoder, monkeypatch):
    embedder = Embedder(encoder, mesh_of(1), (16,))
    embedded, passages = [], Embedder.passages

    def counted(self, some):
        if len(embedded) == 3:
            raise KeyboardInterrupt
        embedded.append(len(some))
        return passages(self, some)

    monkeypatch.setattr(Embedder, "passages", counted)
    options = {"dtype": "int8", "chunk": 40}
    with pytest.raises(KeyboardInterrupt):
        building.build_folder(corpus, tmp_path / "index", embedder, **options)
    assert not (tmp_path / "index").exists()
    told = []
    monkeypatch.setattr(Embedder, "passages", passages)
    building.build_folder(
        corpus, tmp_path / "index", embedder, **options, progress=lambda *args: told.append(args)
    )
    assert told == [("embedding", 120 / 152), ("embedding", 1.0)]
    building.build_folder(corpus, tmp_path / "whole", embedder, **options)
    for file in ("vectors.npy", "scales.npy", "passages.jsonl", "index.json"):
        assert (tmp_path / "index" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_what_was_begun_of_something_else_is_not_used(tmp_path, corpus, encoder, monkeypatch):
    embedder = Embedder(encoder, mesh_of(1), (16,))
    with monkeypatch.context() as patched:
        patched.setattr(building, "put_in_place", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            building.build_folder(corpus, tmp_path / "index", embedder, dtype="int8")
    other = write_corpus(tmp_path / "other.jsonl", ["a", "the"])
    building.build_folder(other, tmp_path / "index", embedder, dtype="float32")
    assert not (tmp_path / "index" / "scales.npy").exists()
    assert building.read_folder(tmp_path / "index", "float32").count == 2


def test_duplicate_ids_and_bad_rows_are_named(tmp_path, encoder):
    embedder = Embedder(encoder, mesh_of(1), (16,))
    row = '{"id": "x", "contents": "T\\ntext"}\n'
    corpus = tmp_path / "corpus.jsonl"
    for text, message in ((row * 2, r"jsonl:2: duplicate id 'x'"), (row + "{", r"jsonl:2: malf")):
        corpus.write_text(text)
        with pytest.raises(ValueError, match=message):
            building.build_folder(corpus, tmp_path / "index", embedder, dtype="float32")
    corpus.write_text("")
    with pytest.raises(ValueError, match="no passages"):
        building.build_folder(corpus, tmp_path / "index", embedder, dtype="float32")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes").write_text("mine")
    corpus.write_text(row)
    with pytest.raises(ValueError, match="is not replaced"):
        building.build_folder(corpus, tmp_path / "own", embedder, dtype="float32")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        building.build_folder(tmp_path / "none.jsonl", tmp_path / "i", embedder, dtype="float32")


@pytest.mark.parametrize(("write", "name"), [(write_npy, "v.npy"), (write_faiss, "v.index")])
def test_vectors_made_elsewhere(tmp_path, corpus, encoder, own_vectors, write, name):
    write(tmp_path / name, Vectors.of(own_vectors))
    build = {"dtype": "float32", "mesh": mesh_of(1), "vectors": tmp_path / name}
    retriever = DenseRetriever.build(corpus, tmp_path / "index", encoder, **build)
    np.testing.assert_array_equal(retriever.vectors.rows(0, len(TEXTS)), own_vectors)
    own = DenseRetriever.build(corpus, tmp_path / "own", encoder, dtype="float32", mesh=mesh_of(1))
    ids = lambda found: [[p.id for p in each] for each in found]  # noqa: E731
    assert ids(retriever.search(QUERIES, 1)) == ids(own.search(QUERIES, 1))
    assert retriever.fingerprint != own.fingerprint


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[::-1], "another encoder, or another order"),
        (lambda x: x[:-1], "holds 151 vectors, the corpus 152 passages"),
        (lambda x: x[:, :-1], "vectors have 23 numbers, those of the encoder 24"),
    ],
)
def test_vectors_of_something_else_are_refused(
    tmp_path, corpus, encoder, own_vectors, spoil, message
):
    write_npy(tmp_path / "v.npy", Vectors.of(np.ascontiguousarray(spoil(own_vectors))))
    embedder = Embedder(encoder, mesh_of(1), (16,))
    with pytest.raises(ValueError, match=message):
        building.build_folder(
            corpus, tmp_path / "i", embedder, dtype="int8", vectors=tmp_path / "v.npy"
        )


def test_numbers_that_are_not_finite_are_found(tmp_path, corpus, encoder, own_vectors):
    spoilt = own_vectors.copy()
    spoilt[8, 2] = np.inf
    write_npy(tmp_path / "v.npy", Vectors.of(spoilt))
    embedder = Embedder(encoder, mesh_of(1), (16,))
    with pytest.raises(ValueError, match=r"passage 8 \(id 'p8'\) holds numbers that are not"):
        building.build_folder(
            corpus, tmp_path / "i", embedder, dtype="int8", vectors=tmp_path / "v.npy"
        )


def test_searches_of_many_threads(tmp_path, corpus, encoder):
    retriever = DenseRetriever.build(corpus, tmp_path / "index", encoder, mesh=mesh_of(8))
    alone = [retriever.search([query], 3) for query in QUERIES]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda query: retriever.search([query], 3), QUERIES * 3)) == alone * 3


def test_device_programs_may_be_sent_elsewhere(tmp_path, corpus, encoder):
    retriever = DenseRetriever.build(corpus, tmp_path / "index", encoder, mesh=mesh_of(1))
    expected, threads = retriever.search(QUERIES, 2), []
    with ThreadPoolExecutor(1) as main:
        for name in ("_vectors_of", "_search"):
            find = getattr(retriever, name)
            noted = lambda *args, find=find: threads.append(threading.get_ident()) or find(*args)  # noqa: E731
            setattr(retriever, name, noted)
        retriever.dispatch = lambda function: main.submit(function).result()
        assert retriever.search(QUERIES, 2) == expected
        assert threads == [main.submit(threading.get_ident).result()] * 2


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [("abc", 1, "list of strings"), ([1], 1, "list of strings"), (["a"], 0, "k must be at least")],
)
def test_bad_searches(tmp_path, corpus, encoder, queries, k, message):
    retriever = DenseRetriever.build(corpus, tmp_path / "index", encoder, mesh=mesh_of(1))
    with pytest.raises(ValueError, match=message):
        retriever.search(queries, k)


# ---- settings


@pytest.fixture
def config(folder):
    config = RETRIEVAL.defaults()
    config.kind = "dense"
    config.dense.encoder = str(folder)
    config.dense.search.batches = (8,)
    return config


def test_opens_builds_and_builds_again(tmp_path, corpus, config, monkeypatch):
    copy = shutil.copy(corpus, tmp_path / "corpus.jsonl")
    index, built, build = tmp_path / "index", [], DenseRetriever.build.__func__
    monkeypatch.setattr(
        DenseRetriever,
        "build",
        classmethod(lambda cls, *a, **k: built.append(1) or build(cls, *a, **k)),
    )
    check_retrieval(config)
    first = open_retriever(config, copy, index)
    again = open_retriever(config, copy, index)
    assert len(built) == 1 and again.fingerprint == first.fingerprint
    assert first.embedder.recipe.query_prefix == "query: "  # by the name of the folder
    assert open_retriever(config, index=index).search(QUERIES, 2) == first.search(QUERIES, 2)
    # Batches of other sizes round differently.
    for found, want in zip(open_as_built(index).search(QUERIES, 2), first.search(QUERIES, 2)):
        assert [p.id for p in found] == [p.id for p in want]
        assert [p.score for p in found] == pytest.approx([p.score for p in want], rel=1e-5)
    config.dense.query_prefix = "who "  # of queries alone: the index stays
    other = open_retriever(config, copy, index)
    assert len(built) == 1 and other.fingerprint != first.fingerprint
    config.dense.passage_prefix = "text "
    with pytest.raises(ValueError, match=r"another encoder than .* or with another pooling"):
        open_retriever(config, index=index)
    # With the corpus at hand it could be built again, over what took hours: that is refused too.
    with pytest.raises(ValueError, match=r"index differs .* in retrieval.dense.encoder, or its"):
        open_retriever(config, copy, index)
    config.dense.passage_prefix, config.dense.dtype = None, "int8"
    with pytest.raises(ValueError, match=r"keeps its vectors as bfloat16, .*dtype is int8"):
        open_retriever(config, index=index)
    with pytest.raises(ValueError, match=r"dense.dtype=int8 \(it keeps bfloat16\)"):
        open_retriever(config, copy, index)
    config.dense.dtype = "bfloat16"
    assert len(built) == 1
    copy.write_text(copy.read_text().replace("title 1", "title 2"))
    open_retriever(config, copy, index)
    assert len(built) == 2
    # One made of vectors from elsewhere is the same without their name.
    export = tmp_path / "vectors.npy"
    write_npy(export, first.vectors)
    config.dense.vectors = str(export)
    of_vectors = tmp_path / "of_vectors"
    open_retriever(config, corpus, of_vectors)
    config.dense.vectors = ""
    open_retriever(config, corpus, of_vectors)
    assert len(built) == 3


def test_without_a_folder_it_is_kept_in_memory(corpus, config):
    retriever = open_retriever(config, corpus)
    assert retriever.search(["the cat"], 1)[0][0].text
    with pytest.raises(ValueError, match="needs a corpus"):
        open_retriever(config)


def test_with_words_as_hybrid(tmp_path, corpus, config):
    config.kind = "hybrid"
    hybrid = open_retriever(config, corpus, tmp_path / "index")
    assert len(hybrid.search(["cat of paris"], 3)[0]) == 3
    folders = [path.name for path in (tmp_path / "index").iterdir() if path.is_dir()]
    assert sorted(folders) == ["bm25", "dense"]
    assert hybrid.counts() == {"dense_cut_queries": 0.0}
    assert len(hybrid.corpus_sha256) == 64 and hybrid.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": ""}, r"retrieval\.dense\.encoder is empty; name the folder"),
        ({"encoder": "/none"}, r"retrieval\.dense\.encoder=/none: there is no such folder"),
        ({"encoder": "s3://b/x"}, r"retrieval\.dense\.encoder=s3://b/x: only paths"),
    ],
)
def test_settings_are_checked_before_anything_is_opened(config, changes, message):
    config.dense.update(changes)
    with pytest.raises(ValueError, match=message):
        check_retrieval(config)
    config.kind, config.hybrid.kinds = "hybrid", ("bm25", "dense")
    with pytest.raises(ValueError, match=message):
        check_retrieval(config)


def test_options_are_refused(config):
    config.options.x = 1
    with pytest.raises(ValueError, match=r"retrieval\.options\.x: dense takes no options"):
        check_retrieval(config)


def test_what_an_index_is_held_to(config):
    before = index_settings(config)
    config.dense.search.block = 7
    config.dense.query_prefix = "x"
    assert index_settings(config) == before
    config.dense.passage_prefix = "x"
    assert index_settings(config) != before
    config.kind = "hybrid"
    before = index_settings(config)
    config.hybrid.k, config.hybrid.depth = 7, 9
    assert index_settings(config) == before
    config.kind = "bm25"
    assert not {"dense", "hybrid"} & set(index_settings(config))


def test_a_damaged_index_is_refused(tmp_path, corpus, encoder):
    DenseRetriever.build(corpus, tmp_path / "index", encoder, mesh=mesh_of(1))
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    assert manifest["passages"] == len(TEXTS) and manifest["width"] == 24
    with open(tmp_path / "index" / "vectors.npy", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"damaged: vectors\.npy"):
        DenseRetriever.load(tmp_path / "index", encoder)
