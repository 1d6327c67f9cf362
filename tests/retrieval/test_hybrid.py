"""Reciprocal-rank fusion: numbers by hand, and the retriever around several."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.retrieval import Passage, Retriever, check_retrieval, open_retriever
from sr1_jax.retrieval.hybrid import HybridRetriever, fused
from sr1_jax.retrieval.settings import RETRIEVAL


def ranking(ids):
    return [Passage(i, f"T{i}", i, 9.0 - rank) for rank, i in enumerate(ids)]


def test_numbers_by_hand():
    found = fused([ranking("abc"), ranking("bd")], k=60)
    assert [passage.id for passage in found] == ["b", "a", "d", "c"]
    scores = [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63]
    assert [passage.score for passage in found] == pytest.approx(scores, rel=1e-12)
    assert found[0].title == "Tb"


def test_equal_scores_keep_the_order_of_the_first():
    assert [p.id for p in fused([ranking("ab"), ranking("ba")], k=60)] == ["a", "b"]
    assert fused([[], []], k=60) == []


rankings = st.lists(st.lists(st.sampled_from("abcdefg"), unique=True), min_size=1, max_size=4)


@given(rankings, st.integers(0, 100))
def test_equals_the_formula(lists, k):
    found = fused([ranking(ids) for ids in lists], k)
    for passage in found:
        ranks = [ids.index(passage.id) + 1 for ids in lists if passage.id in ids]
        assert passage.score == pytest.approx(sum(1 / (k + rank) for rank in ranks))
    assert sorted(p.id for p in found) == sorted(set().union(*lists))
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


class Fixed:
    def __init__(self, ids, **attributes):
        self.ids, self.asked = ids, []
        self.__dict__.update(attributes)

    def search(self, queries, k):
        self.asked.append(k)
        return [ranking(self.ids[:k]) for _ in queries]


def test_each_is_asked_for_the_depth():
    one, two = Fixed("abcdef"), Fixed("fedcba")
    hybrid = HybridRetriever({"one": one, "two": two}, k=60, depth=3)
    assert isinstance(hybrid, Retriever)
    found = hybrid.search(["q", "r"], 2)
    assert [[p.id for p in of_query] for of_query in found] == [["a", "f"]] * 2
    assert len(hybrid.search(["q"], 6)[0]) == 6
    assert one.asked == [3, 6] and two.asked == [3, 6]
    with pytest.raises(ValueError, match="k must be at least 1"):
        hybrid.search(["q"], 0)


def test_fingerprints_and_corpora():
    known = lambda **more: Fixed("a", fingerprint="f", **more)  # noqa: E731
    assert HybridRetriever({"x": known(), "y": Fixed("a")}).fingerprint == ""
    one = HybridRetriever({"x": known(), "y": known()}).fingerprint
    assert one and one != HybridRetriever({"x": known(), "y": known()}, k=1).fingerprint
    of = known(corpus_sha256="1")
    assert HybridRetriever({"x": of, "y": known()}).corpus_sha256 == "1"
    with pytest.raises(ValueError, match="of different corpora"):
        HybridRetriever({"x": of, "y": known(corpus_sha256="2")})


class Reversed:
    """Finds all passages of the corpus, the last first."""

    def __init__(self, corpus):
        self.rows = [json.loads(line) for line in corpus.read_text().splitlines()][::-1]

    def search(self, queries, k):
        return [[Passage(row["id"], "", "", 0.0) for row in self.rows[:k]] for _ in queries]


def make_reversed(config, corpus, index):
    return Reversed(corpus)


def test_opens_its_kinds(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    texts = ["the cat runs", "a dog barks", "a cat sleeps by the cat"]
    rows = ({"id": str(i), "contents": f"T\n{text}"} for i, text in enumerate(texts))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RETRIEVAL.defaults()
    config.kind = "hybrid"
    config.hybrid.kinds = ("bm25", "test_hybrid:make_reversed")
    check_retrieval(config)
    hybrid = open_retriever(config, corpus, tmp_path / "index")
    # By words: 2, 0; the other: 2, 1, 0.
    assert [p.id for p in hybrid.search(["cat"], 3)[0]] == ["2", "0", "1"]
    assert (tmp_path / "index" / "bm25" / "index.json").is_file()
    assert len(hybrid) == 3 and hybrid.passage(1).id == "1"


@pytest.mark.parametrize("kinds", [("bm25",), ("bm25", "bm25"), ("bm25", "http"), ()])
def test_kinds_that_cannot_be_fused(kinds):
    config = RETRIEVAL.defaults()
    config.hybrid.kinds = kinds
    with pytest.raises(ValueError, match=r"hybrid\.kinds must hold two or more"):
        RETRIEVAL.check(config, "retrieval.")
