"""The reranker: what it ranks and scores, what it cuts and counts, and its settings."""

import threading

import jax
import numpy as np
import pytest
from small_encoders import draw_texts, write_corpus, write_cross_encoder

from sr1_jax.models.cross_encoder_folder import load_cross_encoder
from sr1_jax.retrieval import Passage, Retriever, check_retrieval, index_settings, open_retriever
from sr1_jax.retrieval.hooks import counts_of
from sr1_jax.retrieval.open import wrapped
from sr1_jax.retrieval.pair_scorer import PairScorer, PairTokens
from sr1_jax.retrieval.rerank import Reranked
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.sharding import make_mesh

TEXTS = draw_texts(40)
QUERIES = ["who wrote hamlet", "the cat", "", *draw_texts(4, seed=1, longest=8)]
LONG = "cat " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def model(folder):
    return load_cross_encoder(folder)


def mesh_of(devices):
    return make_mesh(devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def scorer(model):
    return PairScorer(model, mesh_of(1), 4)


def scores_one_by_one(model, query, texts):
    """Each pair in a batch of its own, cut by hand."""
    score = jax.jit(model.score)
    found = []
    for text in texts:
        first = model.tokenizer.encode(query).ids
        second = model.tokenizer.encode(text).ids[1:-1][: 32 - len(first) - 1]
        ids = [*first, *second, first[-1]]
        ids_1T, type_1T = np.zeros((2, 1, 32), np.int32)
        ids_1T[0, : len(ids)] = ids
        type_1T[0, len(first) : len(ids)] = 1
        length_1 = np.array([len(ids)], np.int32)
        found.append(np.asarray(score(model.params, ids_1T, length_1, type_1T))[0])
    return np.array(found)


class Fixed:
    """Finds the same passages for every query, in order."""

    fingerprint, corpus_sha256 = "fixed", "c"

    def __init__(self, count=12):
        self.count, self.asked = count, []

    def search(self, queries, k):
        self.asked.append(k)
        texts = TEXTS[: min(k, self.count)]
        rows = [Passage(f"p{i}", f"title {i}", text, -float(i)) for i, text in enumerate(texts)]
        return [list(rows) for _ in queries]


def test_ranks_by_scores_of_the_model(model, scorer):
    retriever = Reranked(Fixed(), scorer, depth=10)
    assert isinstance(retriever, Retriever)
    texts = [f"title {i} {text}" for i, text in enumerate(TEXTS[:10])]
    for query, found in zip(QUERIES, retriever.search(QUERIES, 3)):
        expected = scores_one_by_one(model, query, texts)
        best = np.argsort(-expected)[:3]
        assert [p.id for p in found] == [f"p{i}" for i in best]
        np.testing.assert_allclose([p.score for p in found], expected[best], atol=1e-5)
        assert found[0].text == TEXTS[best[0]] and found[0].title == f"title {best[0]}"
    assert retriever.inner.asked == [10]
    assert len(retriever.search(["a"], 11)[0]) == 11 and retriever.inner.asked[-1] == 11
    assert retriever.search([], 3) == []
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.search(["a"], 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_score_does_not_depend_on_what_else_is_scored(model, devices):
    scorer = PairScorer(model, mesh_of(devices), 3)
    pairs = [(query, text) for query in QUERIES for text in TEXTS[:9]]
    found = scorer.score(pairs).score_N
    for first in (0, 20, 62):
        alone = scorer.score(pairs[first : first + 1]).score_N
        np.testing.assert_array_equal(alone, found[first : first + 1])
    for query, some in zip(QUERIES, found.reshape(-1, 9)):
        np.testing.assert_allclose(some, scores_one_by_one(model, query, TEXTS[:9]), atol=1e-5)


def test_nothing_is_compiled_after_the_start(model):
    compiled = []
    # Nobody can take a listener back alone; this one listens to the end of the process.
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    scorer = PairScorer(model, mesh_of(8), 4)
    assert len(compiled) >= 1  # it is heard
    compiled.clear()
    for count, query in ((1, "a"), (5, "the cat run of paris"), (17, "")):
        scorer.score([(query, text) for text in TEXTS[:count]])
    assert compiled == []


def test_passages_are_cut_and_queries_never(model, scorer):
    tokens = PairTokens(model)
    query, passage = "the cat run", "dog " * 50
    (encoded,) = tokens.encode([(query, passage)])
    assert len(encoded.ids) == 32 and encoded.overflowing
    assert encoded.ids[:5] == model.tokenizer.encode(query).ids
    assert tokens.fits(["cat " * 13, "cat " * 14]) == [True, False]
    retriever = Reranked(Fixed(3), scorer, depth=3)
    _, long = retriever.search(["a", LONG], 2)
    assert [p.id for p in long] == ["p0", "p1"] and long[1].score == -1.0  # as they were found
    assert retriever.counts()["rerank_long_queries"] == 1
    assert retriever.counts()["rerank_pairs"] == 3
    assert retriever.counts()["rerank_cut_passages"] == 0
    scored = scorer.score([(query, passage), (query, "dog"), (LONG, "dog")])
    assert scored.cut == 1 and np.isnan(scored.score_N).tolist() == [False, False, True]
    with pytest.raises(ValueError, match=r"max_tokens=19 leaves no room for a query beside 3"):
        PairTokens(load_cross_encoder(model.path, max_tokens=19))


def test_scores_that_are_not_finite_are_an_error(tmp_path):
    model = load_cross_encoder(write_cross_encoder(tmp_path / "m"))
    broken = jax.tree.map(lambda array: array * np.inf, model.params)
    scorer = PairScorer(model, mesh_of(1), 4)
    scorer._params = broken
    with pytest.raises(FloatingPointError, match="scores that are not finite"):
        scorer.score([("a", "cat")])


def test_equal_scores_keep_their_order(scorer):
    class Same(Fixed):
        def search(self, queries, k):
            return [[Passage(i, "", "the cat", 0.0) for i in "cab"] for _ in queries]

    assert [p.id for p in Reranked(Same(), scorer, 3).search(["dog"], 3)[0]] == list("cab")


def test_device_programs_run_one_search_at_a_time(scorer):
    retriever = Reranked(Fixed(), scorer, depth=5)
    busy, most = 0, 0
    inside, plain = threading.Lock(), scorer.score

    class Watched:
        fingerprint = "w"

        def score(self, pairs):
            nonlocal busy, most
            with inside:
                busy += 1
                most = max(most, busy)
            scored = plain(pairs)
            with inside:
                busy -= 1
            return scored

    retriever._scorer = Watched()
    threads = [threading.Thread(target=retriever.search, args=(["a"], 2)) for _ in range(6)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert most == 1 and retriever.counts()["rerank_pairs"] == 30


def settings(folder, **rerank):
    config = RETRIEVAL.defaults()
    config.rerank.update({"model": str(folder), "batch": 8} | rerank)
    return config


def test_by_settings(tmp_path, folder):
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    config = settings(folder, depth=6)
    config.cache.kind = "memory"
    check_retrieval(config)
    retriever = open_retriever(config, corpus, tmp_path / "index")
    plain = open_retriever(RETRIEVAL.defaults(), corpus, tmp_path / "index")
    found, candidates = (r.search(["the cat"], k)[0] for r, k in ((retriever, 4), (plain, 6)))
    assert {p.id for p in found} <= {p.id for p in candidates}
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert retriever.search(["the cat"], 4)[0] == found
    counts = counts_of(retriever)
    assert counts["cache_hits"] == 1 and counts["rerank_pairs"] == 6
    # The index is that of the retriever, and nothing else is in it.
    assert index_settings(config) == index_settings(RETRIEVAL.defaults())
    prints = {r.fingerprint for r in (retriever, plain)}
    prints |= {wrapped(plain, settings(folder, **o)).fingerprint for o in OTHERS}
    assert len(prints) == 4
    assert retriever.corpus_sha256 == plain.corpus_sha256


OTHERS = ({"depth": 7}, {"depth": 6, "max_tokens": 30}, {"depth": 6, "batch": 4})


def test_what_cannot_be_is_refused(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match=r"rerank\.model=.*none: there is no such folder"):
        check_retrieval(settings(tmp_path / "none"))
    with pytest.raises(ValueError, match="only paths of the file system"):
        check_retrieval(settings("s3://bucket/model"))
    with pytest.raises(ValueError, match=r"rerank\.depth must"):
        RETRIEVAL.check(settings(folder, depth=0), "retrieval.")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="ranks in one process so far; serve"):
        wrapped(Fixed(), settings(folder))


def test_a_retriever_without_a_fingerprint_has_none_reranked(scorer):
    class Nameless:
        def search(self, queries, k):
            return [[] for _ in queries]

    retriever = Reranked(Nameless(), scorer, 3)
    assert retriever.fingerprint == "" and retriever.search(["a", "b"], 3) == [[], []]
