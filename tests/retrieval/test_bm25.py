"""BM25 search: scores against a plain NumPy computation, order, and the index folder."""

import hashlib
import json
import math
import mmap
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sr1_jax.retrieval import BM25Retriever, Passage, Retriever
from sr1_jax.retrieval.bm25_search import _best


def _write_corpus(path, passages):
    rows = ({"id": i, "contents": f'"{title}"\n{text}'} for i, title, text in passages)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _build(tmp_path, passages, **options):
    corpus = _write_corpus(tmp_path / "corpus.jsonl", passages)
    return BM25Retriever.build(corpus, tmp_path / "index", **options)


def _numbered(texts):
    return [(str(i), f"title{i}", text) for i, text in enumerate(texts)]


def _ids(results):
    return [[passage.id for passage in passages] for passages in results]


def _bm25_scores(documents, query, k1, b):
    """Score of each document, all lists of words: one loop a sum, float64, nothing shared.

    sum_t ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 (1 - b + b L / avgL)), Kamphuis et
    al. 2020, "Lucene (accurate)".
    """
    average = sum(len(words) for words in documents) / len(documents)
    scores = []
    for words in documents:
        counts = Counter(words)
        score = 0.0
        for term in query:
            holding = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            norm = k1 * (1 - b + b * len(words) / average)
            if counts[term]:
                score += idf * counts[term] / (counts[term] + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_scores_equal_the_formula(tmp_path, k1, b):
    rng = np.random.default_rng(0)
    # Low numbers are common and high ones rare, as words are.
    draw = lambda n: [f"w{int(x):02d}" for x in rng.geometric(0.15, n)]  # noqa: E731
    titles = [draw(rng.integers(1, 4)) for _ in range(60)]
    texts = [draw(rng.integers(1, 40)) for _ in range(60)]
    passages = [(str(i), " ".join(titles[i]), " ".join(texts[i])) for i in range(60)]
    retriever = _build(tmp_path, passages, k1=k1, b=b, stemmer=None, stopwords=None)
    queries = [draw(n) for n in (1, 2, 3, 5, 8)] + [["w01", "w01", "w07"], ["w02", "absent"]]
    results = retriever.search([" ".join(query) for query in queries], k=1000)
    documents = [title + text for title, text in zip(titles, texts)]
    for query, found in zip(queries, results):
        expected = _bm25_scores(documents, query, k1, b)
        matching = {str(i) for i, words in enumerate(documents) if set(words) & set(query)}
        assert {passage.id for passage in found} == matching
        np.testing.assert_allclose(
            [passage.score for passage in found],
            [expected[int(passage.id)] for passage in found],
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            [passage.score for passage in found],
            sorted((expected[int(i)] for i in matching), reverse=True),
            rtol=1e-5,
        )


def test_passages_come_back_whole(tmp_path):
    passages = [("x", 'The "Big" One', "Zeile eins.\nMünchen 見る 🎈"), ("y", "Other", "nothing")]
    retriever = _build(tmp_path, passages)
    assert isinstance(retriever, Retriever)
    assert len(retriever) == 2
    [[found]] = retriever.search(["münchen"], k=3)
    assert found == Passage("x", 'The "Big" One', "Zeile eins.\nMünchen 見る 🎈", found.score)
    assert type(found.score) is float
    assert found.score > 0


def test_title_and_text_are_one(tmp_path):
    passages = [("a", "lion", "eats meat"), ("b", "cow", "eats grass"), ("c", "tree", "lion")]
    retriever = _build(tmp_path, passages)
    assert _ids(retriever.search(["lion meat", "lion"], k=3)) == [["a", "c"], ["c", "a"]]


def test_queries_without_a_known_word_find_nothing(tmp_path):
    retriever = _build(tmp_path, _numbered(["the cat and the dog", "the bird"]))
    queries = ["", "  \n", "the and of", "zebra", "?!", "x", "\ud800", "zebra cat"]
    assert _ids(retriever.search(queries, k=2)) == [[]] * 7 + [["0"]]
    assert retriever.search([], k=1) == []


def test_only_matching_passages_and_at_most_k(tmp_path):
    retriever = _build(tmp_path, _numbered(["cat", "dog", "cat cat", "bird"]))
    assert {len(found) for found in retriever.search(["cat"] * 2, k=100)} == {2}
    assert _ids(retriever.search(["cat"], k=1)) == [["2"]]
    assert len(retriever.search(["cat dog bird"], k=3)[0]) == 3


def test_equal_scores_keep_corpus_order(tmp_path):
    texts = ["same words"] * 50
    texts[20] = "same same words"
    passages = [(str(i), "page", text) for i, text in enumerate(texts)]
    retriever = _build(tmp_path, passages)
    order = ["20"] + [str(i) for i in range(50) if i != 20]
    for k in (1, 2, 7, 49, 50):
        assert _ids(retriever.search(["same"], k)) == [order[:k]]


def test_best_against_a_full_sort():
    rng = np.random.default_rng(1)
    for _ in range(200):
        scores_N = rng.integers(0, 4, rng.integers(1, 30)).astype(np.float32)
        k = int(rng.integers(1, 35))
        ranked = sorted(range(len(scores_N)), key=lambda i: (-scores_N[i], i))
        assert _best(scores_N, k).tolist() == ranked[:k]


def test_stemming_and_stop_words_are_options(tmp_path):
    texts = ["he runs the race", "a running man", "who run it"]
    stemmed = _build(tmp_path, _numbered(texts))
    assert sorted(_ids(stemmed.search(["RUNS", "the"], k=5))[0]) == ["0", "1", "2"]
    assert stemmed.search(["the"], k=5) == [[]]
    plain = _build(tmp_path, _numbered(texts), stemmer=None, stopwords=None)
    assert _ids(plain.search(["runs", "the"], k=5)) == [["0"], ["0"]]
    # The options come back with the index.
    assert _ids(BM25Retriever.load(tmp_path / "index").search(["run"], k=5)) == [["2"]]


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(tmp_path, k):
    retriever = _build(tmp_path, _numbered(["cat"]))
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.search(["cat"], k)


@pytest.mark.parametrize("queries", ["cat", ["cat", None]])
def test_queries_of_the_wrong_type(tmp_path, queries):
    retriever = _build(tmp_path, _numbered(["cat"]))
    with pytest.raises(ValueError, match="queries must be a list of strings"):
        retriever.search(queries, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": -1}, "k1 must be"),
        ({"k1": math.nan}, "k1 must be"),
        ({"b": 1.1}, "b must be"),
        ({"stemmer": "klingon"}, "no stemmer 'klingon'"),
        ({"stopwords": "klingon"}, "stopwords: klingon"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _build(tmp_path, _numbered(["cat"]), **options)
    assert not (tmp_path / "index").exists()


def test_threads_find_what_one_finds(tmp_path):
    rng = np.random.default_rng(2)
    words = [
        f"{stem}{ending}" for stem in ("walk", "talk", "jump") for ending in ("s", "ed", "ing")
    ]
    passages = _numbered([" ".join(rng.choice(words, 12)) for _ in range(200)])
    retriever = _build(tmp_path, passages)
    batches = [[" ".join(rng.choice(words, 3)) for _ in range(5)] for _ in range(40)]
    expected = [retriever.search(batch, 4) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda batch: retriever.search(batch, 4), batches)) == expected


def test_mapped_and_in_memory_agree(tmp_path):
    _build(tmp_path, _numbered(["cat dog", "dog", "bird cat cat"]))
    mapped = BM25Retriever.load(tmp_path / "index")
    in_memory = BM25Retriever.load(tmp_path / "index", mmap=False)
    assert isinstance(mapped._passages._lines, mmap.mmap)
    assert isinstance(mapped._passages._offsets, np.memmap)
    assert isinstance(mapped._postings.scores_P.base, np.memmap)
    assert isinstance(mapped._vocabulary._text, mmap.mmap)
    assert not isinstance(in_memory._postings.scores_P.base, np.memmap)
    assert isinstance(in_memory._vocabulary._text, bytes)
    queries = ["cat", "dog cat", "bird"]
    assert mapped.search(queries, 3) == in_memory.search(queries, 3)


def test_manifest_and_equal_builds(tmp_path):
    passages = _numbered(["cat dog", "dog"])
    manifest = _build(tmp_path, passages).manifest
    corpus = (tmp_path / "corpus.jsonl").read_bytes()
    assert manifest["corpus_sha256"] == hashlib.sha256(corpus).hexdigest()
    assert manifest["corpus"] == "corpus.jsonl"
    assert manifest["passages"] == 2
    assert (manifest["k1"], manifest["b"]) == (0.9, 0.4)
    BM25Retriever.build(tmp_path / "corpus.jsonl", tmp_path / "second")
    for path in (tmp_path / "index").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_a_new_index_replaces_the_old_one_when_complete(tmp_path):
    old = _build(tmp_path, _numbered(["cat"]))
    new = _build(tmp_path, _numbered(["cat", "cat cat"]))
    assert _ids(new.search(["cat"], 5)) == [["1", "0"]]
    assert _ids(old.search(["cat"], 5)) == [["0"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]


@pytest.mark.parametrize(
    ("passages", "message"),
    [
        ([("a", "T", "dog"), ("a", "T", "dog")], "duplicate id 'a'"),
        ([("a", "the", "of the"), ("b", "and", "?")], "no passage holds a word"),
    ],
)
def test_a_failed_build_changes_nothing(tmp_path, passages, message):
    _build(tmp_path, _numbered(["cat"]))
    with pytest.raises(ValueError, match=message):
        _build(tmp_path, passages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "index"]
    assert _ids(BM25Retriever.load(tmp_path / "index").search(["cat"], 5)) == [["0"]]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sr1_jax.retrieval.bm25.write_manifest",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, _numbered(["cat"]))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_missing_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        BM25Retriever.build(tmp_path / "none.jsonl", tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty and not a"):
        _build(tmp_path, _numbered(["cat"]))
    assert (tmp_path / "index" / "thesis.txt").read_text() == "precious"


def test_an_index_that_also_holds_other_files_is_not_replaced(tmp_path):
    _build(tmp_path, _numbered(["cat"]))
    (tmp_path / "index" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"besides the index it holds notes\.txt"):
        _build(tmp_path, _numbered(["dog"]))
    assert _ids(BM25Retriever.load(tmp_path / "index").search(["cat"], 1)) == [["0"]]


def test_empty_folder_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "index").mkdir()
    assert len(_build(tmp_path, _numbered(["cat"]))) == 1
    deep = tmp_path / "a" / "b" / "index"
    assert len(BM25Retriever.build(tmp_path / "corpus.jsonl", deep)) == 1


def test_a_file_is_no_index_folder(tmp_path):
    (tmp_path / "index").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        _build(tmp_path, _numbered(["cat"]))


def _cut_short(folder):
    path = folder / "passages.jsonl"
    path.write_bytes(path.read_bytes()[:-3])


def _set_manifest(folder, **fields):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "not a complete"),
        (lambda folder: (folder / "index.json").write_text("{"), "not a complete"),
        (lambda folder: (folder / "data.csc.index.npy").unlink(), "data.csc.index.npy should"),
        (_cut_short, "damaged: passages.jsonl should have"),
        (lambda folder: _set_manifest(folder, format="other"), "not a complete"),
        (lambda folder: _set_manifest(folder, version=99), "index version 99"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(tmp_path, damage, message):
    _build(tmp_path, _numbered(["cat"]))
    damage(tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        BM25Retriever.load(tmp_path / "index")


def test_load_without_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such index"):
        BM25Retriever.load(tmp_path / "none")


def test_nothing_is_printed(tmp_path, capfd):
    retriever = _build(tmp_path, _numbered(["cat", "dog"]))
    retriever.search(["cat", "", "unknown"], 2)
    assert capfd.readouterr() == ("", "")


def test_import_leaves_jax_alone():
    code = "import sys, sr1_jax.retrieval; sys.exit('jax' in sys.modules or 'bm25s' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_passage_by_its_place(tmp_path):
    retriever = _build(tmp_path, _numbered(["red cat", "blue dog"]))
    assert retriever.passage(1) == Passage("1", "title1", "blue dog", 0.0)
