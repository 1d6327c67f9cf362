"""Reading and checking questions."""

import gzip
import json
from types import SimpleNamespace

import pytest

from sr1_jax.data.questions import Question, as_question, read_questions

GOOD = {"id": "nq:dev:0", "question": "Who?", "golden_answers": ["Ann", "Anne"]}


def _write(path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_reads_plain_and_gzip_alike(tmp_path):
    rows = [GOOD, {**GOOD, "id": 7, "metadata": {"yes_no": False}, "extra": 1}]
    plain = _write(tmp_path / "q.jsonl", *rows)
    zipped = tmp_path / "q.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    expected = [
        Question("nq:dev:0", "Who?", ("Ann", "Anne"), {}),
        Question("7", "Who?", ("Ann", "Anne"), {"yes_no": False}),
    ]
    assert read_questions(plain) == expected
    assert read_questions(str(zipped)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id must be a string, found None"),
        ({"id": False}, "id must be a string, found False"),
        ({"id": " "}, "id is empty"),
        ({"question": 3}, "question must be a string, found 3"),
        ({"question": " \n"}, "question is empty"),
        ({"golden_answers": []}, "golden_answers is empty"),
        ({"golden_answers": "Ann"}, "golden_answers must be a list of strings, found 'Ann'"),
        ({"golden_answers": None}, "golden_answers must be a list of strings, found None"),
        ({"golden_answers": ["Ann", 1912]}, "golden_answers must be a list of strings, found 1912"),
        ({"golden_answers": ["Ann", ""]}, "blank answer"),
        ({"metadata": ["x"]}, "metadata must be an object"),
        ({"id": "first"}, "duplicate id 'first', first used on line 1"),
    ],
)
def test_faults_name_file_and_line(tmp_path, change, message):
    path = _write(tmp_path / "q.jsonl", {**GOOD, "id": "first"}, "", {**GOOD, **change})
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize("key", ["id", "question", "golden_answers"])
def test_missing_key(tmp_path, key):
    row = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ValueError, match=rf"q\.jsonl:1: key '{key}' is missing"):
        read_questions(_write(tmp_path / "q.jsonl", row))
    with pytest.raises(ValueError, match=f"^question: key '{key}' is missing"):
        as_question(row)


def test_malformed_json(tmp_path):
    with pytest.raises(ValueError, match=r"q\.jsonl:2: malformed JSON"):
        read_questions(_write(tmp_path / "q.jsonl", GOOD, '{"id": '))


def test_empty_and_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no questions"):
        read_questions(_write(tmp_path / "q.jsonl"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")


def test_as_question_takes_dicts_objects_and_questions():
    expected = Question("nq:dev:0", "Who?", ("Ann", "Anne"))
    assert as_question(GOOD) == expected
    assert as_question(SimpleNamespace(**GOOD)) == expected
    assert as_question(SimpleNamespace(**GOOD, metadata=None)) == expected
    assert as_question(expected) == expected
    assert as_question({**GOOD, "metadata": {"a": 1}}).metadata == {"a": 1}


def test_as_question_checks_questions_too():
    with pytest.raises(ValueError, match="golden_answers is empty"):
        as_question(Question("a", "b", ()))


def test_questions_can_be_set_members():
    first, second = as_question(GOOD), as_question({**GOOD, "metadata": {"a": 1}})
    assert len({first, second, as_question(GOOD)}) == 2
