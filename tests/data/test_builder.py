"""Question files as a TFDS data set."""

import hashlib
import json
import socket
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from sr1_jax.data import builder, prepared
from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import read_questions, scan_questions


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


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    files = {"train": _write(tmp_path / "t.jsonl", 3)}

    def interrupt(*files):
        yield next(scan_questions(*files))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "scan_questions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_questions(files, tmp_path / "data")
    assert not (tmp_path / "data").exists()
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
    wrote = builder._write

    def be_second(given, data_dir, fingerprint):
        wrote(given, data_dir, fingerprint)
        monkeypatch.setattr(builder, "_write", wrote)
        prepare_questions(files, tmp_path / "data")

    monkeypatch.setattr(builder, "_write", be_second)
    fingerprint = prepare_questions(files, tmp_path / "data")
    assert len(open_questions(tmp_path / "data", "train", fingerprint)) == 3
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["sr1_questions"]


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = _write(tmp_path / "t.jsonl", 3)

    def scan_and_change(*files):
        yield from scan_questions(*files)
        _write(path, 4)

    monkeypatch.setattr(builder, "scan_questions", scan_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        prepare_questions({"train": path}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def _folder(data_dir, fingerprint):
    (folder,) = (data_dir / "sr1_questions" / fingerprint).iterdir()
    return folder


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("harm", [_flip, _cut, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "name", ["*.array_record*", "index-train.npz", "features.json", "dataset_info.json"]
)
def test_damage_is_named_and_mended_where_the_files_are(tmp_path, capsys, harm, name):
    files = {"train": _write(tmp_path / "t.jsonl", 40)}
    fingerprint = prepare_questions(files, tmp_path / "data")
    whole = list(open_questions(tmp_path / "data", "train"))
    (path,) = _folder(tmp_path / "data", fingerprint).glob(name)
    harm(path)
    with pytest.raises(ValueError, match=r"(is missing|does not have its checksum); prepare the"):
        open_questions(tmp_path / "data", "train")
    capsys.readouterr()
    assert prepare_questions(files, tmp_path / "data") == fingerprint
    said = capsys.readouterr().err
    assert path.name in said and said.endswith("the questions are prepared again.\n")
    assert list(open_questions(tmp_path / "data", "train")) == whole
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["sr1_questions"]
    prepare_questions(files, tmp_path / "data")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [None, "", "[]", '{"features.json": '])
def test_without_sound_checksums_nothing_is_known_to_be_complete(tmp_path, content):
    files = {"train": _write(tmp_path / "t.jsonl", 4)}
    fingerprint = prepare_questions(files, tmp_path / "data")
    path = _folder(tmp_path / "data", fingerprint) / "checksums.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"checksums\.json is (missing|damaged)"):
        open_questions(tmp_path / "data", "train")
    prepare_questions(files, tmp_path / "data")
    assert len(open_questions(tmp_path / "data", "train")) == 4


def test_checksums_are_those_of_the_files(tmp_path):
    fingerprint = prepare_questions({"train": _write(tmp_path / "t.jsonl", 4)}, tmp_path / "data")
    folder = _folder(tmp_path / "data", fingerprint)
    checksums = json.loads((folder / "checksums.json").read_text())
    others = {path.name for path in folder.iterdir()} - {"checksums.json"}
    assert set(checksums) == others and len(others) >= 4
    for name, checksum in checksums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum


def test_tfds_reads_what_is_written(tmp_path):
    """Its own reader of its own features is the oracle of our records."""
    path = _write(tmp_path / "t.jsonl", 50)
    fingerprint = prepare_questions({"train": path}, tmp_path / "data")
    source = tfds.builder_from_directory(_folder(tmp_path / "data", fingerprint)).as_data_source()
    rows = list(source["train"])
    assert [row["id"].decode() for row in rows] == [q.id for q in read_questions(path)]
    for row, question in zip(rows, read_questions(path), strict=True):
        assert row["question"].decode() == question.question
        assert [answer.decode() for answer in row["golden_answers"]] == [*question.golden_answers]
        assert json.loads(row["metadata"]) == question.metadata


def test_all_at_once_and_one_by_one_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_READ_AT_ONCE", 7)
    prepare_questions({"train": _write(tmp_path / "t.jsonl", 30)}, tmp_path / "data")
    source = open_questions(tmp_path / "data", "train")
    assert list(source) == [source[number] for number in range(30)]
    assert source.index.bytes_Q.tolist() == [len(q.question.encode()) for q in source]


def test_the_fingerprint_of_files_is_what_it_was(tmp_path):
    """Runs that were started before are resumed by it."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a", "question": "b", "golden_answers": ["c"]}\n')
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    want = hashlib.sha256(f"train {sha}\n".encode()).hexdigest()[:24]
    assert prepare_questions({"train": path}, tmp_path / "data") == want


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
