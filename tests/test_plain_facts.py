"""The corpus that the project wrote itself: well-formed, and fit to be asked about."""

import json
import re
from pathlib import Path

import pytest

from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval.corpus import read_corpus

CORPUS = Path(__file__).parents[1] / "examples" / "plain_facts.jsonl"
MOST_WORDS = 120


@pytest.fixture(scope="module")
def passages():
    return list(read_corpus(CORPUS))  # refuses ids that come twice


def test_each_passage_is_short_and_its_own(passages):
    assert 300 <= len(passages) <= 1000
    for values in zip(*passages):
        assert len(set(values)) == len(passages)
    for id, title, text in passages:
        assert re.fullmatch(r"plain:[a-z0-9_]+", id)
        assert title == title.strip() and 0 < len(title) <= 60
        assert 5 <= len(text.split()) <= MOST_WORDS
        assert text[0].isupper() and text.endswith((".", "?", '"'))
        assert not re.search(r"\s{2}|[<>\t\n]|\[|\]", title + text)


def test_keys_and_order_of_the_file():
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        assert list(json.loads(line)) == ["id", "title", "text"]


def test_most_passages_name_others(passages):
    titles = {title for _, title, _ in passages}
    pattern = re.compile(
        r"\b(" + "|".join(sorted(map(re.escape, titles), key=len, reverse=True)) + r")\b"
    )
    linked = sum(bool(set(pattern.findall(text)) - {title}) for _, title, text in passages)
    assert linked / len(passages) > 0.7


# (query of a hop, title that has what it asks for)
HOPS = [
    ("author of Frankenstein", "Frankenstein"),
    ("Mary Shelley born", "Mary Shelley"),
    ("architect of the Sydney Opera House", "Sydney Opera House"),
    ("Jørn Utzon born", "Jørn Utzon"),
    ("painter of Guernica", "Guernica"),
    ("where was Pablo Picasso born", "Pablo Picasso"),
    ("who discovered polonium", "Polonium"),
    ("capital of Australia", "Australia"),
]


def test_hops_are_found(passages, tmp_path):
    retriever = BM25Retriever.build(CORPUS, tmp_path / "index")
    found = retriever.search([query for query, _ in HOPS], 2)
    for (query, title), hits in zip(HOPS, found):
        assert title in [hit.title for hit in hits], query
