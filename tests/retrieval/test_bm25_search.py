"""Pruned search: what it finds is what the full sum finds, and it does prune."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.retrieval import BM25Retriever, bm25_search
from sr1_jax.retrieval.bm25_search import Postings, Searcher, _kth
from sr1_jax.rewards import normalize_answer


def _postings(rng, passages, sizes, levels=None):
    """Random postings; of `levels` different scores, so that there are ties, if that is given."""
    lists, scores = [], []
    for size in sizes:
        held = np.sort(rng.choice(passages, min(size, passages), replace=False))
        lists.append(held.astype(np.int32))
        # Words that many passages hold score little, as they do.
        rarity = np.log1p(passages / len(held))
        drawn = rng.integers(1, levels + 1, len(held)) / levels if levels else rng.random(len(held))
        scores.append((rarity * (0.05 + drawn)).astype(np.float32))
    starts = np.cumsum([0] + [len(held) for held in lists])
    return Postings(
        np.concatenate(scores),
        np.concatenate(lists),
        starts,
        np.array([s.max() for s in scores], np.float32),
        passages,
    )


def _full_sum(postings, words, k):
    """All scores, one word after the other from the rarest on, in float32; then a full sort."""
    sums = np.zeros(postings.passages, np.float32)
    for word in sorted(words, key=lambda word: (postings.held(word), word)):
        passages, scores = postings.of(word)
        sums[passages] += scores * np.float32(words[word])
    order = [i for i in np.argsort(-sums, kind="stable").tolist() if sums[i] > 0][:k]
    return order, sums[order].tolist()


@given(st.data())
def test_equals_the_full_sum_to_the_bit(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bm25_search, "_BLOCK", data.draw(st.sampled_from([1, 7, 256, 1 << 20])))
        _check_random_queries(data)


def _check_random_queries(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    passages = int(rng.integers(1, 3000 if bm25_search._BLOCK > 7 else 300))
    sizes = (passages * rng.random(8) ** 4).astype(int) + 1
    postings = _postings(rng, passages, sizes, data.draw(st.sampled_from([None, 1, 3])))
    searcher = Searcher(postings, 1)
    for _ in range(5):
        words = Counter(rng.integers(0, 8, data.draw(st.integers(1, 9))).tolist())
        k = data.draw(st.sampled_from([1, 2, 3, 10, 100, 5000]))
        found, scores = searcher.top(words, k)
        expected = _full_sum(postings, words, k)
        assert (found.tolist(), scores.tolist()) == expected
    # Whoever borrows the sums leaves zeros.
    assert not searcher._sums.get().any()


@pytest.mark.parametrize("block", [10_000, 33_333, 100_000, 1 << 20])
@pytest.mark.parametrize("sizes", [(5, 90_000, 100_000), (40_000, 60_000, 99_000, 100_000)])
def test_long_lists_too(sizes, block, monkeypatch):
    """Where thresholds come from maxima of groups, and candidates are many."""
    monkeypatch.setattr(bm25_search, "_BLOCK", block)
    postings = _postings(np.random.default_rng(3), 100_000, sizes)
    searcher = Searcher(postings, 1)
    words = dict.fromkeys(range(len(sizes)), 1)
    for k in (1, 3, 10, 1000):
        found, scores = searcher.top(words, k)
        assert (found.tolist(), scores.tolist()) == _full_sum(postings, words, k)


def test_common_words_are_not_added_to_all(monkeypatch):
    rng = np.random.default_rng(0)
    postings = _postings(rng, 50_000, [40, 200, 25_000, 49_999])
    added = []
    add = bm25_search._Query._add
    monkeypatch.setattr(
        bm25_search._Query,
        "_add",
        lambda self, term: added.append(len(term.passages_P)) or add(self, term),
    )
    words = dict.fromkeys(range(4), 1)
    found, scores = Searcher(postings, 1).top(words, 3)
    assert (found.tolist(), scores.tolist()) == _full_sum(postings, words, 3)
    assert added == [40] or added == [40, 200]


def test_a_block_has_to_beat_the_best_of_those_before(monkeypatch):
    """Common words are added in the first block alone, where the best passages lie."""
    monkeypatch.setattr(bm25_search, "_BLOCK", 1000)
    passages = np.arange(10_000, dtype=np.int32)
    rare, common = passages[::10], passages
    scores = [np.where(rare < 20, 3.0, 1.0), np.full(10_000, 1.5)]
    postings = Postings(
        np.concatenate(scores).astype(np.float32),
        np.concatenate([rare, common]),
        np.array([0, 1000, 11_000]),
        np.array([3.0, 1.5], np.float32),
        10_000,
    )
    added = []
    add = bm25_search._Query._add
    monkeypatch.setattr(
        bm25_search._Query,
        "_add",
        lambda self, term: added.append((self._block, len(term.passages_P))) or add(self, term),
    )
    found, best = Searcher(postings, 1).top({0: 1, 1: 1}, 2)
    assert (found.tolist(), best.tolist()) == ([0, 10], [4.5, 4.5])
    assert [(block, size) for block, size in added if block] == [(b, 1000) for b in range(1, 10)]


def test_the_kth_highest_is_never_overstated():
    rng = np.random.default_rng(1)
    for size in (1, 5, 100, 5000, 9000, 40_000):
        values = rng.random(size).astype(np.float32)
        for k in (1, 3, 50, 4000):
            exact = np.sort(values)[-k] if size >= k else 0
            assert _kth(values, k) <= exact
            if size <= 4096:
                assert _kth(values, k) == exact
    # Close enough to prune by.
    assert _kth(values, 3) > 0.999


def test_more_searches_than_sums_wait_for_each_other():
    postings = _postings(np.random.default_rng(5), 2000, [50, 500, 1999])
    searcher = Searcher(postings, 2)
    queries = [dict.fromkeys(words, 1) for words in ((0, 1), (1, 2), (0, 2), (0, 1, 2))] * 50
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda words: searcher.top(words, 5)[0].tolist(), queries))
    assert found == [_full_sum(postings, words, 5)[0] for words in queries]
    assert searcher._sums.qsize() == 2


def test_a_search_that_fails_harms_no_other(monkeypatch):
    postings = _postings(np.random.default_rng(6), 2000, [50, 500])
    searcher = Searcher(postings, 1)
    with monkeypatch.context() as patch:
        patch.setattr(bm25_search, "_best", None)
        with pytest.raises(TypeError):
            searcher.top({0: 1}, 3)
        patch.setattr(bm25_search, "_kth", None)
        with pytest.raises(TypeError):
            searcher.top({0: 1, 1: 1}, 3)
    words = {0: 1, 1: 2}
    assert searcher.top(words, 3)[0].tolist() == _full_sum(postings, words, 3)[0]


def test_a_batch_takes_as_many_threads_as_it_is_told(tmp_path, monkeypatch):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"cat w{i}"}) + "\n" for i in range(30)))
    BM25Retriever.build(path, tmp_path / "index")
    queries = [f"cat w{i}" for i in range(30)]
    expected = [str(i) for i in range(30)]
    for threads in (1, 3):
        retriever = BM25Retriever.load(tmp_path / "index", threads=threads)
        names = set()
        top = retriever._searcher.top

        def noted(words, k, top=top, names=names):
            names.add(threading.current_thread().name)
            return top(words, k)

        monkeypatch.setattr(retriever._searcher, "top", noted)
        assert [found[0].id for found in retriever.search(queries, 2)] == expected
        assert len(names) <= threads
        assert (threading.current_thread().name in names) == (threads == 1)


QA = Path(__file__).parents[3] / "shared" / "data" / "qa"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An index of real passages."""
    return BM25Retriever.build(QA / "corpus.jsonl.gz", tmp_path_factory.mktemp("qa") / "index")


def _questions(name):
    with open(QA / f"dev_{name}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    # Yes and no stand in most passages, or in none by way of an answer.
    return [row for row in rows if not row["metadata"].get("yes_no")]


@pytest.mark.slow
@pytest.mark.skipif(not QA.is_dir(), reason="the real data is not beside the checkout")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nq", (79.8, 90.3)),
        ("hotpotqa", (63.9, 80.8)),
        ("2wikimultihopqa", (45.5, 60.4)),
        ("musique", (22.1, 33.1)),
    ],
)
def test_answers_in_the_top_of_real_passages(real, name, expected):
    """Against what bm25s, used plainly, finds; its figures are told with the data."""
    questions = _questions(name)
    results = real.search([row["question"] for row in questions], 10)
    for k, share in zip((3, 10), expected):
        found = 0
        for row, passages in zip(questions, results):
            texts = [normalize_answer(f"{p.title}\n{p.text}") for p in passages[:k]]
            answers = [normalize_answer(answer) for answer in row["golden_answers"]]
            found += any(answer in text for answer in answers for text in texts)
        assert abs(100 * found / len(questions) - share) < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not QA.is_dir(), reason="the real data is not beside the checkout")
def test_ranks_of_real_queries_equal_those_of_bm25s(real):
    """1,000 questions; where two scores are equal but for rounding their order may differ."""
    rows = list(map(real._passages.__getitem__, range(len(real))))
    stemmer = Stemmer.Stemmer("english")
    options = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
    theirs = bm25s.BM25(k1=0.9, b=0.4)
    theirs.index(bm25s.tokenize([f"{t}\n{x}" for _, t, x in rows], **options), show_progress=False)
    index_of = {passage_id: i for i, (passage_id, _, _) in enumerate(rows)}
    names = ("nq", "popqa", "hotpotqa", "squad")
    queries = [row["question"] for name in names for row in _questions(name)[:250]]
    assert len(queries) > 990
    words = bm25s.tokenize(queries, return_ids=False, **options)
    for of_query, found in zip(words, real.search(queries, 10)):
        scores = theirs.get_scores(of_query)
        ours = scores[[index_of[passage.id] for passage in found]]
        np.testing.assert_allclose(ours, np.sort(scores)[::-1][:10], rtol=1e-5)
