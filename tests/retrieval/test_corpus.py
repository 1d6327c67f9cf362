"""Reading passage files."""

import gzip
import json

import pytest

from sr1_jax.retrieval import read_corpus


def _write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def _row(**fields):
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Paris"\nA city.', "Paris", "A city."),
        ("Paris\nA city.", "Paris", "A city."),
        ('"Paris"\nFirst.\nSecond.', "Paris", "First.\nSecond."),
        ('""Weird Al" Yankovic"\nA singer.', '"Weird Al" Yankovic', "A singer."),
        ('"\nA city.', '"', "A city."),
        ("Only text.", "", "Only text."),
        ('"Déjà vu"\n見る.', "Déjà vu", "見る."),
    ],
)
def test_title_and_text_of_contents(tmp_path, contents, title, text):
    path = _write(tmp_path / "c.jsonl", _row(id="7", contents=contents))
    assert list(read_corpus(path)) == [("7", title, text)]


def test_title_and_text_keys_and_integer_ids(tmp_path):
    path = _write(
        tmp_path / "c.jsonl",
        _row(id=3, title="T", text="x", url="ignored"),
        "",
        _row(id="4", text="no title"),
    )
    assert list(read_corpus(str(path))) == [("3", "T", "x"), ("4", "", "no title")]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "misnamed.jsonl"])
def test_gzip_is_known_by_its_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(_row(id="a", contents="T\nx").encode()))
    assert list(read_corpus(path)) == [("a", "T", "x")]


def test_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + _row(id="a", contents="T\nx").encode())
    assert list(read_corpus(path)) == [("a", "T", "x")]


def test_line_separator_characters_do_not_split_a_row(tmp_path):
    row = json.dumps({"id": "a", "contents": "T\nx\u2028y\x85z"}, ensure_ascii=False)
    path = _write(tmp_path / "c.jsonl", row)
    assert list(read_corpus(path)) == [("a", "T", "x\u2028y\x85z")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", ', "malformed JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        (_row(contents="T\nx"), "key 'id' is missing"),
        (_row(id="b"), "key 'contents' is missing"),
        (_row(id="b", title="T"), "key 'contents' is missing"),
        (_row(id="b", contents=["x"]), "contents must be a string"),
        (_row(id="b", title=None, text="x"), "title must be a string"),
        (_row(id="b", title="T", text=5), "text must be a string"),
        (_row(id=True, contents="T\nx"), "id must be a string"),
        (_row(id="", contents="T\nx"), "id must be a string"),
        (_row(id="b", contents=" \n "), "the passage is empty"),
        (_row(id="a", contents="T\nx"), "duplicate id 'a', first used on line 1"),
        ('{"id": "b", "contents": "\\ud800"}', "surrogate"),
    ],
)
def test_faults_name_file_and_line(tmp_path, line, message):
    path = _write(tmp_path / "c.jsonl", _row(id="a", contents="T\nx"), "", line)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_corpus(path))
    assert str(caught.value).startswith(f"{path}:3: ")


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"id": "a", "contents": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl:1: not UTF-8"):
        list(read_corpus(path))


def test_damaged_gzip(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    rows = "".join(_row(id=str(i), contents=f"T\n{i}") + "\n" for i in range(1000))
    path.write_bytes(gzip.compress(rows.encode())[:-200])
    with pytest.raises(ValueError, match="damaged gzip file"):
        list(read_corpus(path))


def test_no_passages(tmp_path):
    with pytest.raises(ValueError, match="no passages"):
        list(read_corpus(_write(tmp_path / "c.jsonl", "", "  ")))


def test_missing_file_and_folder_fail_before_the_first_passage(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_corpus(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is a folder"):
        read_corpus(tmp_path)
