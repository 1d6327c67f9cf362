"""A corpus that lacks a share of its passages."""

import json

import numpy as np
import pytest

from sr1_jax.retrieval import BM25Retriever, Passage, check_retrieval, open_retriever
from sr1_jax.retrieval.incomplete import Incomplete, is_missing
from sr1_jax.retrieval.open import index_settings
from sr1_jax.retrieval.settings import RETRIEVAL


class Shelf:
    """Finds its passages in order, for any query; remembers how many it was asked for."""

    fingerprint = "shelf"

    def __init__(self, size=200):
        self.passages = [Passage(str(i), f"T{i}", f"text {i}", 0.0) for i in range(size)]
        self.asked = []

    def search(self, queries, k):
        self.asked.append(k)
        return [self.passages[:k] for _ in queries]


def test_the_share_is_missing():
    for share in (0.05, 0.3, 0.8):
        missing = np.mean([is_missing(f"p{i}", share) for i in range(20_000)])
        assert missing == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_a_larger_share_lacks_those_of_a_smaller_one():
    few, many = ({i for i in range(500) if is_missing(str(i), share)} for share in (0.2, 0.4))
    assert few < many


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_found_is_the_ranking_without_them(tmp_path, share):
    """Against BM25's whole ranking, from which the missing ones are taken out."""
    words = ["ash", "birch", "cedar", "elm"]
    rng = np.random.default_rng(0)
    corpus = tmp_path / "corpus.jsonl"
    texts = (" ".join(rng.choice(words, size=1 + i % 7)) for i in range(120))
    rows = [{"id": str(i), "contents": f'"T{i}"\n{text}'} for i, text in enumerate(texts)]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    inner = BM25Retriever.build(corpus, tmp_path / "index")
    queries = ["ash birch", "cedar", "elm elm ash", "nothing of it"]
    whole = inner.search(queries, 120)
    found = Incomplete(inner, share).search(queries, 5)
    assert found == [[p for p in row if not is_missing(p.id, share)][:5] for row in whole]
    if share == 0.9:
        assert any(is_missing(p.id, share) for row in whole for p in row[:5])


def test_a_query_asks_for_more_until_there_are_enough():
    shelf = Shelf()
    rest = [p for p in shelf.passages if not is_missing(p.id, 0.7)]
    assert Incomplete(shelf, 0.7).search(["a", "b"], 4) == [rest[:4]] * 2
    assert shelf.asked == [4 * 2**i for i in range(len(shelf.asked))]
    assert shelf.asked[-1] > shelf.passages.index(rest[3])


def test_a_small_corpus_ends_it():
    shelf = Shelf(10)
    rest = [p for p in shelf.passages if not is_missing(p.id, 0.5)]
    assert Incomplete(shelf, 0.5).search(["a"], 10) == [rest]


def test_a_service_is_asked_for_no_more_than_it_gives():
    shelf = Shelf()
    found = Incomplete(shelf, 0.99, most=20).search(["a"], 3)
    assert len(found[0]) < 3 and shelf.asked == [3, 6, 12, 20]


def settings(**values):
    config = RETRIEVAL.defaults()
    config.update(values)
    return config


def test_the_setting(tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "\n".join(f'{{"id": "{i}", "contents": "\\"T{i}\\"\\nash tree {i}"}}' for i in range(40))
    )
    config = settings(missing=0.5)
    check_retrieval(config)
    whole, part = (open_retriever(c, corpus) for c in (settings(), config))
    ids = [p.id for p in part.search(["ash tree"], 40)[0]]
    assert ids == [p.id for p in whole.search(["ash tree"], 40)[0] if not is_missing(p.id, 0.5)]
    assert 0 < len(ids) < 40
    # Results of the one are no results of the other; an index serves both.
    assert part.fingerprint != whole.fingerprint
    assert index_settings(config) == index_settings(settings())


def test_it_excludes_noise():
    config = settings(missing=0.1)
    config.noise.start = 0.5
    with pytest.raises(ValueError, match=r"retrieval\.missing=0\.1 excludes retrieval\.noise"):
        check_retrieval(config)


def test_all_missing_is_refused():
    with pytest.raises(ValueError, match="missing"):
        RETRIEVAL.check(settings(missing=1.0), "retrieval.")
