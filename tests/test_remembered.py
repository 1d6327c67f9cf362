"""What was found out is not found out again, unless what it depends on has changed."""

import hashlib
import json
import os

import pytest

from sr1_jax import remembered as memories
from sr1_jax.remembered import note_sha256, remembered, remembered_sha256
from sr1_jax.retrieval import bm25, corpus_files
from sr1_jax.retrieval.corpus_files import corpus_sha256


@pytest.fixture
def read(monkeypatch):
    """The files that were hashed, in order."""
    files = []

    def hashed(path):
        files.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(memories, "sha256_of", hashed)
    monkeypatch.setattr(corpus_files, "sha256_of", hashed)
    return files


def written(path, text, age=60.0):
    """A file that was last changed so many seconds ago."""
    path.write_text(text)
    about = path.stat()
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns - int(age * 1e9)))
    return path


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_each_question_has_its_newest_answer(tmp_path):
    memory, asked = tmp_path / "new" / "memory.json", []

    def find(answer):
        asked.append(answer)
        return answer

    assert remembered(memory, "a", [1, "x"], lambda: find([3])) == [3]
    assert remembered(memory, "a", [1, "x"], lambda: find([4])) == [3]
    assert remembered(memory, "b", [1, "x"], lambda: find(None)) is None
    assert remembered(memory, "b", [1, "x"], lambda: find(5)) is None
    assert remembered(memory, "a", [2, "x"], lambda: find([6])) == [6]
    assert remembered(memory, "a", [1, "x"], lambda: find([7])) == [7]
    assert asked == [[3], None, [6], [7]]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', '{"a": {"key": 1}}'])
def test_a_damaged_memory_costs_time_alone(tmp_path, content):
    memory = tmp_path / "memory.json"
    memory.write_text(content)
    assert remembered(memory, "a", 1, lambda: 5) == 5
    assert remembered(memory, "a", 1, lambda: 6) == 5


def test_a_memory_that_cannot_be_written_costs_time_alone(tmp_path):
    (tmp_path / "file").touch()
    assert remembered(tmp_path / "file" / "memory.json", "a", 1, lambda: 5) == 5


def test_a_file_is_hashed_again_when_it_changes(tmp_path, read):
    memory, path = tmp_path / "memory.json", written(tmp_path / "a", "one")
    assert [remembered_sha256(path, memory) for _ in range(3)] == [sha256("one")] * 3
    assert read == ["a"]
    written(path, "two", age=30)  # of equal size
    assert remembered_sha256(path, memory) == sha256("two")
    written(path, "three", age=30)
    assert remembered_sha256(path, memory) == sha256("three")
    assert read == ["a"] * 3


def test_a_file_that_changed_just_now_is_not_trusted(tmp_path, read):
    memory, path = tmp_path / "memory.json", written(tmp_path / "a", "one", age=0)
    assert [remembered_sha256(path, memory) for _ in range(2)] == [sha256("one")] * 2
    assert read == ["a", "a"] and not memory.exists()


def test_a_hash_that_others_found_is_noted_if_the_file_stayed(tmp_path, read):
    memory, path = tmp_path / "memory.json", written(tmp_path / "a", "one")
    changed = path.stat().st_mtime
    note_sha256(path, memory, sha256("one"), read_since=changed + 1)
    assert not memory.exists()
    note_sha256(path, memory, sha256("one"), read_since=changed + 10)
    assert remembered_sha256(path, memory) == sha256("one") and read == []


def test_a_corpus_of_several_files(tmp_path, read):
    folder, memory = tmp_path / "corpus", tmp_path / "memory.json"
    folder.mkdir()
    for name in "ab":
        written(folder / name, name)
    whole = corpus_sha256(folder)
    assert [corpus_sha256(folder, memory) for _ in range(2)] == [whole, whole]
    assert read == ["a", "b"] * 2
    written(folder / "b", "c", age=30)
    assert corpus_sha256(folder, memory) != whole
    assert read == [*"abab", "b"]


def test_a_run_hashes_its_corpus_once(tmp_path, read, monkeypatch):
    """While it is indexed; the starts that follow look at its size and time."""
    line = json.dumps({"id": "0", "contents": "Ann\nAnn was born in Bo."})
    corpus = written(tmp_path / "corpus.jsonl", line + "\n")
    config = {"k1": 0.9, "b": 0.4, "stemmer": "english", "stopwords": "en"}
    index = tmp_path / "data" / "index"
    for _ in range(3):
        assert len(bm25.open_bm25(config, corpus, index)) == 1
    assert read == ["corpus.jsonl"]
    written(corpus, line.replace("Bo.", "Cy.") + "\n", age=30)
    (passage,) = bm25.open_bm25(config, corpus, index).search(["Ann"], 1)[0]
    assert "Cy" in passage.text
