"""Reading and checking questions."""

import gzip
import json
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.data.questions import (
    Question,
    QuestionFile,
    as_question,
    read_questions,
    stratified,
)

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


# Several files, and draws from them


def _files(tmp_path, **counts):
    """A file a source; the ids of `plain` do not name it."""
    paths = []
    for source, count in counts.items():
        prefix = "p" if source == "plain" else f"{source}:dev:"
        rows = [{**GOOD, "id": f"{prefix}{i}"} for i in range(count)]
        paths.append(_write(tmp_path / f"{source}.jsonl", *rows))
    return paths


def test_several_files(tmp_path):
    paths = _files(tmp_path, nq=2, plain=1)
    questions = read_questions(*paths)
    assert [q.id for q in questions] == ["nq:dev:0", "nq:dev:1", "p0"]
    assert [q.source for q in questions] == ["nq", "nq", "plain"]
    assert [as_question(q).source for q in questions] == ["nq", "nq", "plain"]
    assert as_question(GOOD).source == "nq"


def test_an_id_may_not_come_again_in_another_file(tmp_path):
    (nq,) = _files(tmp_path, nq=2)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(nq.read_text())
    with pytest.raises(ValueError, match=rf"copy\.jsonl:1: .* first used on line 1 of {nq}"):
        read_questions(nq, copy)


def test_a_draw_gives_each_source_its_share(tmp_path):
    """Formerly the head of the file, of one source alone in merged files."""
    questions = read_questions(*_files(tmp_path, nq=60, hotpotqa=30, plain=10))
    drawn = stratified(questions, 20, seed=0)
    assert Counter(q.source for q in drawn) == {"nq": 12, "hotpotqa": 6, "plain": 2}
    assert len({q.id for q in drawn}) == 20
    # 17 of 100: 10.2, 5.1 and 1.7; what is left goes to the largest remainder.
    drawn = stratified(questions, 17, seed=0)
    assert Counter(q.source for q in drawn) == {"nq": 10, "hotpotqa": 5, "plain": 2}


def test_a_draw_depends_on_the_seed_and_not_on_the_order(tmp_path):
    paths = _files(tmp_path, nq=60, hotpotqa=30, plain=10)
    there, back = read_questions(*paths), read_questions(*reversed(paths))
    assert stratified(there, 20, seed=0) == stratified(back[::-1], 20, seed=0)
    assert stratified(there, 20, seed=0) != stratified(there, 20, seed=1)
    # No source is drawn by the order in which it stands.
    drawn = [int(q.id.split(":")[2]) for q in stratified(there, 20, seed=0) if q.source == "nq"]
    assert max(drawn) > 30


@pytest.mark.parametrize("count", [100, 101, 400])
def test_a_draw_of_all_leaves_them_as_they_stand(tmp_path, count):
    questions = read_questions(*_files(tmp_path, nq=60, hotpotqa=40))
    assert stratified(questions, count, seed=3) == questions


def test_an_empty_draw(tmp_path):
    assert stratified(read_questions(*_files(tmp_path, nq=3)), 0, seed=0) == []
    assert stratified([], 4, seed=0) == []


def test_a_source_that_neither_question_nor_id_says():
    plain = GOOD | {"id": "7"}
    assert as_question(plain, source="mine").source == "mine"
    assert as_question(GOOD, source="mine").source == "nq"
    assert as_question(as_question(plain, source="mine"), source="other").source == "mine"


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert [question.id for question in read_questions(path)] == ["nq:dev:0"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_rows = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text() | st.integers() | _json,
        "question": st.text() | _json,
        "golden_answers": st.lists(st.text(), max_size=3) | _json,
        "metadata": _json,
    },
)


@given(st.lists(_rows | _json | st.binary(max_size=8), min_size=1, max_size=4))
def test_whatever_stands_in_a_file_is_read_or_refused_by_line(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("hostile") / "q.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    for file in (path, QuestionFile(path, "nq", "train")):
        try:
            questions = read_questions(file)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            continue
        assert len({question.id for question in questions}) == len(questions) > 0
        assert all(question.golden_answers and question.question.strip() for question in questions)
