"""Indexes built in chunks and processes: the same files, and those that bm25s opens."""

import gzip
import json
import os
import signal

import bm25s
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import Stemmer
import tensorflow_datasets as tfds

from sr1_jax.retrieval import BM25Retriever, bm25_merge, corpus_files, read_corpus
from sr1_jax.retrieval.processes import map_numbered

WORDS = [f"{stem}{end}" for stem in ("walk", "talk", "naïve", "日本") for end in ("s", "ed", "ing")]


def _rows(count=300):
    rng = np.random.default_rng(0)
    return [
        {"id": f"p{i}", "contents": f'"T{i % 7}"\n{" ".join(rng.choice(WORDS, 1 + i % 20))}'}
        for i in range(count)
    ]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path):
    return _write(tmp_path / "corpus.jsonl", _rows())


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_chunks_processes_and_groups_do_not_show(corpus, tmp_path, monkeypatch):
    BM25Retriever.build(corpus, tmp_path / "whole", workers=1)
    monkeypatch.setattr(corpus_files, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(bm25_merge, "_GROUP", 50)
    monkeypatch.setattr(bm25_merge, "_WORDS_AT_ONCE", 3)
    assert len(list(corpus_files.read_chunks(corpus))) > 10
    for workers in (1, 2):
        BM25Retriever.build(corpus, tmp_path / "parts", workers=workers)
        assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


def test_bm25s_opens_the_index_and_scores_alike(corpus, tmp_path):
    """Against the library's own index of the same texts, not only against the formula."""
    BM25Retriever.build(corpus, tmp_path / "index", k1=1.2, b=0.75)
    ours = bm25s.BM25.load(tmp_path / "index", mmap=True)
    stemmer = Stemmer.Stemmer("english")
    texts = [row["contents"] for row in _rows()]
    theirs = bm25s.BM25(k1=1.2, b=0.75)
    theirs.index(
        bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    queries = [WORDS[:1], WORDS[3:6], WORDS[::2], ["T3", "walks"]]
    for query in queries:
        words = bm25s.tokenize(
            " ".join(query), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )[0]
        scores = theirs.get_scores(words)
        assert scores.max() > 0
        np.testing.assert_allclose(ours.get_scores(words), scores, rtol=1e-6)


def test_every_form_of_a_corpus_gives_the_same_index(corpus, tmp_path):
    rows = _rows()
    zipped = tmp_path / "corpus.jsonl.gz"
    zipped.write_bytes(gzip.compress(corpus.read_bytes()))
    table = tmp_path / "corpus.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=37)
    folder = _write_tfds(tmp_path / "tfds", rows)
    expected = list(read_corpus(corpus))
    BM25Retriever.build(corpus, tmp_path / "index")
    index = _files(tmp_path / "index")
    manifest = json.loads(index.pop("index.json"))
    for other in (zipped, table, folder):
        assert list(read_corpus(other)) == expected
        built = BM25Retriever.build(other, tmp_path / "other")
        files = _files(tmp_path / "other")
        assert json.loads(files.pop("index.json"))["corpus"] == other.name
        assert files == index
        assert built.corpus_sha256 != manifest["corpus_sha256"]
        assert built.corpus_sha256 == corpus_files.corpus_sha256(other)


def _write_tfds(folder, rows):
    class Passages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text
            features = tfds.features.FeaturesDict({"id": text(), "contents": text()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": enumerate(rows)}

        def _generate_examples(self):
            raise NotImplementedError

    tfds.disable_progress_bar()
    builder = Passages(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def test_faults_of_other_forms(tmp_path):
    table = tmp_path / "corpus.parquet"
    rows = [{"id": "a", "contents": "T\nx"}, {"id": "a", "contents": "T\ny"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    with pytest.raises(ValueError, match=r"corpus\.parquet, row 2: duplicate id 'a', first"):
        BM25Retriever.build(table, tmp_path / "index")
    table.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"corpus\.parquet: not a parquet file, or damaged"):
        read_corpus(table)
    with pytest.raises(ValueError, match=r"is a folder without a TFDS data set; give a \.jsonl"):
        BM25Retriever.build(tmp_path, tmp_path / "index")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (120, '{"id": "x"', r"corpus\.jsonl:121: malformed JSON"),
        (299, '{"id": "x"}', r"corpus\.jsonl:300: key 'contents' is missing"),
        (250, '{"id": "p3", "text": "x"}', r"jsonl:251: duplicate id 'p3', first used on line 4"),
    ],
)
def test_faults_are_told_with_their_line(
    corpus, tmp_path, monkeypatch, workers, line, text, message
):
    monkeypatch.setattr(corpus_files, "CHUNK_BYTES", 1500)
    lines = corpus.read_text().splitlines()
    lines[line] = text
    corpus.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        BM25Retriever.build(corpus, tmp_path / "index", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_the_first_of_several_faults_is_told(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "CHUNK_BYTES", 1500)
    lines = corpus.read_text().splitlines()
    lines[40] = lines[200] = lines[280] = "{"
    corpus.write_text("\n".join(lines))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"corpus\.jsonl:41: malformed"):
            BM25Retriever.build(corpus, tmp_path / "index", workers=2)


def test_progress_is_told_and_rises(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(bm25_merge, "_GROUP", 50)
    told = []
    BM25Retriever.build(
        corpus, tmp_path / "index", workers=2, progress=lambda *what: told.append(what)
    )
    for stage in ("counting words", "merging"):
        shares = [share for what, share in told if what == stage]
        assert len(shares) > 5
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


def test_passages_without_words_and_long_ones(tmp_path):
    """A passage whose every word is a stop word, and counts that do not fit into a byte or two."""
    texts = ["the", "cat " * 70_000, "cat " * 300 + "dog", "?"]
    corpus = _write(tmp_path / "c.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    retriever = BM25Retriever.build(corpus, tmp_path / "index")
    found = retriever.search(["cats", "dog", "the"], 5)
    assert [[passage.id for passage in some] for some in found] == [["1", "2"], ["2"], []]
    theirs = bm25s.BM25(k1=0.9, b=0.4)
    theirs.index([text.replace("the", "").replace("?", "").split() for text in texts])
    scores = theirs.get_scores(["cat"])
    np.testing.assert_allclose([p.score for p in found[0]], scores[[1, 2]], rtol=1e-6)


def test_an_index_of_an_older_version_is_built_again(corpus, tmp_path):
    from sr1_jax.retrieval import open_retriever

    config = {"kind": "bm25", "k1": 0.9, "b": 0.4, "stemmer": "english", "stopwords": "en"}
    open_retriever(config, corpus, tmp_path / "index")
    manifest = tmp_path / "index" / "index.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(ValueError, match="has index version 1, this program reads version 2"):
        open_retriever(config, None, tmp_path / "index")
    assert len(open_retriever(config, corpus, tmp_path / "index")) == 300
    assert BM25Retriever.load(tmp_path / "index").manifest["version"] == 2


def _double(number, item):
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("into no answer")
    return number, 2 * item


def test_processes_answer_in_order_and_print_into_nothing():
    assert list(map_numbered(_double, range(20), 3)) == [(i, 2 * i) for i in range(20)]
    assert list(map_numbered(_double, [], 3)) == []


def test_a_process_that_dies_is_told():
    with pytest.raises(RuntimeError, match=r"a worker process ended with code -9 .* memory"):
        list(map_numbered(_double, [1, 2, "die", 4, 5, 6], 2))
