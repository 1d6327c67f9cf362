"""The ranks of the index against BM25 that was written from its formula alone, 1,000 queries."""

import json
from pathlib import Path

import numpy as np
import pytest
from plain_bm25 import PlainBM25, assert_same_ranks

from sr1_jax.retrieval import BM25Retriever, read_corpus

QA = Path(__file__).parents[3] / "shared" / "data" / "qa"
SETS = ("nq", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "squad")


def compare(corpus, folder, queries, k, **options):
    """Asserts that all ranks are the same; the share of queries with the very same list."""
    rows = list(read_corpus(corpus))
    place = {passage_id: number for number, (passage_id, _, _) in enumerate(rows)}
    plain = PlainBM25([f"{title}\n{text}" for _, title, text in rows], **options)
    index = BM25Retriever.build(corpus, folder, **options)
    same = 0
    for query, passages in zip(queries, index.search(queries, k), strict=True):
        scores_N = plain.scores(query)
        found = [place[passage.id] for passage in passages]
        assert_same_ranks(found, scores_N, k)
        np.testing.assert_allclose([p.score for p in passages], scores_N[found], rtol=1e-5)
        same += found == np.argsort(-scores_N, kind="stable")[: len(found)].tolist()
    return same / len(queries)


@pytest.mark.parametrize(("k1", "b", "k"), [(0.9, 0.4, 10), (1.5, 0.75, 100)])
def test_ranks_of_synthetic_queries(tmp_path, k1, b, k):
    """Inflected words, stop words, capitals, punctuation, accents and words of one character."""
    rng = np.random.default_rng(4)
    stems = [f"{a}{b}" for a in ("walk", "talk", "jump", "été", "naïv", "x1_") for b in "aeiouy"]
    endings = ("", "s", "ed", "ing", "ly", "ness", "ful")
    common = ["the", "The", "of", "and", "I", "a", "-", "no."]
    weights = 1 / np.arange(1, len(stems) + 1)

    def draw(size):
        drawn = rng.choice(stems, size, p=weights / weights.sum())
        words = [stem + rng.choice(endings) + rng.choice(["", "", ",", "'s"]) for stem in drawn]
        words = [word.upper() if rng.random() < 0.1 else word for word in words]
        return " ".join(word if rng.random() < 0.7 else rng.choice(common) for word in words)

    corpus = tmp_path / "corpus.jsonl"
    rows = [
        {"id": f"p{i}", "contents": f'"{draw(2)}"\n{draw(int(rng.integers(1, 60)))}'}
        for i in range(600)
    ]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    queries = [draw(int(rng.integers(0, 9))) for _ in range(1000)]
    assert compare(corpus, tmp_path / "index", queries, k, k1=k1, b=b) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not QA.is_dir(), reason="the real data is not beside the checkout")
def test_ranks_of_real_queries(tmp_path):
    """Real questions of six sets over real passages."""
    questions = []
    for name in SETS:
        with open(QA / f"dev_{name}.jsonl", encoding="utf-8") as file:
            questions.append([json.loads(line)["question"] for line in file])
    queries = [question for row in zip(*(some[:167] for some in questions)) for question in row]
    same = compare(QA / "corpus.jsonl.gz", tmp_path / "index", queries[:1000], 10)
    print(f"{100 * same:.1f} % of the lists are the same to the last passage")
    assert len(queries) >= 1000 and same > 0.95
