"""Question files as a TFDS data set."""

import json
import socket
import subprocess
import sys

import pytest

from sr1_jax.data import builder
from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import read_questions


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _write(path, count, prefix="q"):
    rows = (
        {
            "id": f"{prefix}:{i}",
            "question": f"Où est {i}? 見る",
            "golden_answers": [f"é{j}" for j in range(i % 3 + 1)],
            "metadata": {"n": i, "deep": {"titles": ["á"]}, "none": None},
        }
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_questions_come_back_in_file_order(tmp_path):
    files = {"train": _write(tmp_path / "t.jsonl", 300), "dev_nq": _write(tmp_path / "d.jsonl", 1)}
    prepare_questions(files, tmp_path / "data")
    for split, path in files.items():
        source = open_questions(tmp_path / "data", split)
        assert list(source) == read_questions(path)
        assert len(source) == len(read_questions(path))
    source = open_questions(tmp_path / "data", "train")
    assert source[-1] == source[299]
    with pytest.raises(IndexError):
        source[300]


def test_a_changed_file_is_never_served_stale(tmp_path):
    path = _write(tmp_path / "t.jsonl", 3)
    first = prepare_questions({"train": path}, tmp_path / "data")
    _write(path, 3, prefix="new")
    second = prepare_questions({"train": path}, tmp_path / "data")
    assert first != second
    assert open_questions(tmp_path / "data", "train")[0].id == "new:0"
    assert open_questions(tmp_path / "data", "train", first)[0].id == "q:0"
    _write(path, 3)
    assert prepare_questions({"train": path}, tmp_path / "data") == first
    assert open_questions(tmp_path / "data", "train")[0].id == "q:0"


def test_the_same_file_under_another_split_name_is_another_data_set(tmp_path):
    path = _write(tmp_path / "t.jsonl", 3)
    first = prepare_questions({"train": path}, tmp_path / "data")
    assert prepare_questions({"dev": path}, tmp_path / "data") != first
    assert len(open_questions(tmp_path / "data", "dev")) == 3


def test_nothing_is_rebuilt_without_need(tmp_path, monkeypatch):
    files = {"train": _write(tmp_path / "t.jsonl", 3)}
    first = prepare_questions(files, tmp_path / "data")
    monkeypatch.setattr(builder, "_build", None)
    assert prepare_questions(files, tmp_path / "data") == first


def test_an_interrupted_preparation_does_not_look_complete(tmp_path, monkeypatch):
    files = {"train": _write(tmp_path / "t.jsonl", 3)}

    def interrupt(self, questions):
        yield from self_generate(self, questions[:2])
        raise KeyboardInterrupt

    self_generate = builder.QuestionBuilder._generate_examples
    with monkeypatch.context() as patch:
        patch.setattr(builder.QuestionBuilder, "_generate_examples", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_questions(files, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    with pytest.raises(FileNotFoundError, match="no prepared questions"):
        open_questions(tmp_path / "data", "train")
    prepare_questions(files, tmp_path / "data")
    assert len(open_questions(tmp_path / "data", "train")) == 3


def test_a_crash_between_two_contents_keeps_the_first(tmp_path, monkeypatch):
    path = _write(tmp_path / "t.jsonl", 3)
    prepare_questions({"train": path}, tmp_path / "data")
    _write(path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(builder.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_questions({"train": path}, tmp_path / "data")
    assert len(open_questions(tmp_path / "data", "train")) == 3
    prepare_questions({"train": path}, tmp_path / "data")
    assert len(open_questions(tmp_path / "data", "train")) == 5


def test_a_process_that_was_second_uses_what_the_first_built(tmp_path, monkeypatch):
    files = {"train": _write(tmp_path / "t.jsonl", 3)}
    first = prepare_questions(files, tmp_path / "data")
    answers = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_is_prepared", lambda *_: next(answers))
        patch.setattr(
            builder.QuestionBuilder,
            "download_and_prepare",
            lambda *_, **__: (_ for _ in ()).throw(OSError("folder is there")),
        )
        assert prepare_questions(files, tmp_path / "data") == first


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = _write(tmp_path / "t.jsonl", 3)

    def read_and_change(source):
        questions = read_questions(source)
        _write(path, 4)
        return questions

    monkeypatch.setattr(builder, "read_questions", read_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        prepare_questions({"train": path}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_faults_in_a_file_name_the_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"t\.jsonl:1: key 'question' is missing"):
        prepare_questions({"train": path}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("split", ["all", "All", "", "dev-nq", "1st", "a b", "train[:3]"])
def test_split_names(tmp_path, split):
    with pytest.raises(ValueError, match="split name"):
        prepare_questions({split: _write(tmp_path / "t.jsonl", 1)}, tmp_path / "data")


def test_missing_files_and_splits(tmp_path):
    with pytest.raises(ValueError, match="No question files"):
        prepare_questions({}, tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="split 'train'"):
        prepare_questions({"train": tmp_path / "none.jsonl"}, tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="no prepared questions"):
        open_questions(tmp_path / "data", "train")
    prepare_questions({"train": _write(tmp_path / "t.jsonl", 1)}, tmp_path / "data")
    with pytest.raises(ValueError, match=r"no split 'dev'.* there are train"):
        open_questions(tmp_path / "data", "dev")
    with pytest.raises(FileNotFoundError, match="fingerprint 0123"):
        open_questions(tmp_path / "data", "train", "0123")


def test_no_noise_and_no_tensorflow(tmp_path):
    # In a process of its own: pytest replaces the log handlers, other tests may load TensorFlow.
    path = _write(tmp_path / "t.jsonl", 3)
    code = f"""
import sys
from sr1_jax.data.builder import open_questions, prepare_questions
prepare_questions({{"train": {str(path)!r}}}, {str(tmp_path / "data")!r})
assert open_questions({str(tmp_path / "data")!r}, "train")[2].id == "q:2"
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["sr1_questions"]


def test_a_split_of_several_files(tmp_path):
    one, other = (tmp_path / f"{name}.jsonl" for name in ("a", "b"))
    for path in (one, other):
        row = {"id": f"{path.stem}:0", "question": "Who?", "golden_answers": ["Ann"]}
        path.write_text(json.dumps(row) + "\n")
    both = prepare_questions({"train": [one, other]}, tmp_path / "data")
    source = open_questions(tmp_path / "data", "train", both)
    assert [source[i].id for i in range(len(source))] == ["a:0", "b:0"]
    assert both != prepare_questions({"train": one}, tmp_path / "data")
    assert both != prepare_questions({"train": [other, one]}, tmp_path / "data")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file \(questions of split"):
        prepare_questions({"train": [one, tmp_path / "none.jsonl"]}, tmp_path / "data")
