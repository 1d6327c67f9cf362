"""Supporting paragraphs of multi-hop questions, added to a corpus."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from sr1_jax import complete_corpus as program
from sr1_jax.retrieval import read_corpus
from sr1_jax.retrieval.supporting import complete_corpus, supporting_paragraphs

HOTPOT = {
    "_id": "h1",
    "question": "?",
    "supporting_facts": [["Ada", 0], ["Ada", 1], ["Bob", 0], ["Gone", 0]],
    "context": [["Ada", ["Ada was born.", " She wrote."]], ["Eve", ["No."]], ["Bob", ["Bob is."]]],
}
HUGGING_FACE = {
    "id": "h1",
    "supporting_facts": {"title": ["Ada", "Ada", "Bob", "Gone"], "sent_id": [0, 1, 0, 0]},
    "context": {
        "title": ["Ada", "Eve", "Bob"],
        "sentences": [["Ada was born.", " She wrote."], ["No."], ["Bob is."]],
    },
}
MUSIQUE = {
    "id": "m1",
    "paragraphs": [
        {"idx": 0, "title": "Bob", "paragraph_text": "Bob  is.", "is_supporting": True},
        {"idx": 1, "title": "Cy", "paragraph_text": "Cy lives.", "is_supporting": True},
        {"idx": 2, "title": "Eve", "paragraph_text": "No.", "is_supporting": False},
    ],
}
AS_TEXT = {key: json.dumps(HOTPOT[key]) for key in ("context", "supporting_facts")}


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path):
    rows = [
        {"id": "0", "contents": '"Zoo"\nAnimals.', "url": "kept"},
        {"id": "1", "contents": '"Ada"\nAda was  born. She wrote.'},
        {"id": "2", "contents": '"Bob"\nanother text'},
    ]
    return _lines(tmp_path / "corpus.jsonl", rows)


@pytest.mark.parametrize(
    "row",
    [
        HOTPOT,
        HUGGING_FACE,
        AS_TEXT,
        {"metadata": HUGGING_FACE},
        {"metadata": {**HUGGING_FACE, "context": {
            "title": HUGGING_FACE["context"]["title"],
            "content": HUGGING_FACE["context"]["sentences"],
        }}},
    ],
)  # fmt: skip
def test_forms_of_questions(row):
    found, without_text = supporting_paragraphs(row, "here")
    assert [(title, " ".join(text.split())) for title, text in found] == [
        ("Ada", "Ada was born. She wrote."),
        ("Bob", "Bob is."),
    ]
    assert without_text == 1


def test_musique():
    assert supporting_paragraphs(MUSIQUE, "here") == (
        [("Bob", "Bob  is."), ("Cy", "Cy lives.")],
        0,
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": "no paragraphs"},
        {"context": HOTPOT["context"]},
        {"context": "{", "supporting_facts": "[]"},
        {"paragraphs": [{"title": "T", "is_supporting": True}]},
        {"metadata": None},
    ],
)
def test_what_is_no_such_question(row):
    with pytest.raises(ValueError, match=r"^f:3: no supporting paragraphs are found \("):
        supporting_paragraphs(row, "f:3")


def test_only_what_is_missing_is_added(corpus, tmp_path):
    before = corpus.read_text()
    hotpot = tmp_path / "hotpot.json"
    hotpot.write_text(json.dumps([HOTPOT, HOTPOT]))
    musique = _lines(tmp_path / "musique.jsonl", [MUSIQUE])
    out = tmp_path / "complete.jsonl"
    report = complete_corpus(corpus, [hotpot, musique], out)
    rows = list(read_corpus(out))
    assert [row[1:] for row in rows[3:]] == [("Bob", "Bob is."), ("Cy", "Cy lives.")]
    assert out.read_text().startswith(before) and corpus.read_text() == before
    assert report.to_dict() == {
        "corpus": str(corpus),
        "passages": 3,
        "added": 2,
        "files": [
            {
                "file": str(hotpot), "questions": 2, "supporting": 4, "without_text": 2,
                "distinct": 2, "in_corpus": 1, "added": 1,
            },
            {
                "file": str(musique), "questions": 1, "supporting": 2, "without_text": 0,
                "distinct": 1, "in_corpus": 0, "added": 1,
            },
        ],
    }  # fmt: skip
    again = complete_corpus(out, [musique, hotpot], tmp_path / "again.jsonl.gz")
    assert (again.passages, again.added) == (5, 0)
    assert gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes()) == out.read_bytes()


def test_parquet_in_and_zipped_out(corpus, tmp_path):
    table = tmp_path / "corpus.parquet"
    passages = [{"id": i, "title": t, "text": x} for i, t, x in read_corpus(corpus)]
    passages.append({"id": "3", "title": "two\nlines", "text": "x"})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(passages), table)
    questions = tmp_path / "musique.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([MUSIQUE]), questions)
    out = tmp_path / "out.jsonl.gz"
    assert complete_corpus(table, [questions], out).added == 2
    rows = list(read_corpus(out))
    assert rows[:4] == [tuple(row.values()) for row in passages]
    assert {row[1] for row in rows[4:]} == {"Bob", "Cy"}
    assert len({row[0] for row in rows}) == 6


def test_a_long_list_is_read_item_by_item(corpus, tmp_path):
    """Items that lie across the blocks in which the file is read."""
    rows = [
        {**MUSIQUE, "paragraphs": [{**MUSIQUE["paragraphs"][0], "paragraph_text": f"{i} ü" * 4000}]}
        for i in range(150)
    ]
    path = tmp_path / "q.json"
    for separators in ((",", ":"), (" ,\n ", " : ")):
        path.write_text(json.dumps(rows, ensure_ascii=False, separators=separators))
        out = tmp_path / f"{len(separators[0])}.jsonl"
        assert complete_corpus(corpus, [path], out).added == 150
        assert path.stat().st_size > 2 << 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"q\.json: no questions"),
        ("", r"q\.json: no questions"),
        ('{"data": []}', r"q\.json: not a list of JSON"),
        ('[{"question": "x"}]', r"q\.json, item 1: no supporting paragraphs"),
        ("[5]", r"q\.json, item 1: expected an object, found int"),
        (f"[{json.dumps(MUSIQUE)}, {{", r"q\.json, item 2: malformed JSON"),
        (f"[{json.dumps(MUSIQUE)},", r"q\.json: cut short after item 1"),
    ],
)
def test_faults_leave_nothing_behind(corpus, tmp_path, text, message):
    path = tmp_path / "q.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        complete_corpus(corpus, [path], tmp_path / "out.jsonl")
    corpus.write_text("{}\n")
    path.write_text(json.dumps([MUSIQUE]))
    with pytest.raises(ValueError, match=r"corpus\.jsonl:1: key 'id' is missing"):
        complete_corpus(corpus, [path], tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "q.json"]


def test_the_program(corpus, tmp_path, capsys):
    questions = _lines(tmp_path / "m.jsonl", [MUSIQUE])
    out, report = tmp_path / "new" / "out.jsonl", tmp_path / "other" / "report.json"
    arguments = [f"--corpus={corpus}", f"--questions={questions}", f"--out={out}"]
    program.main(["complete_corpus", *arguments, f"--report={report}"])
    text, errors = capsys.readouterr()
    assert text == (
        f"{questions}: 1 questions, 2 supporting paragraphs, 2 not in files before; "
        f"0 in the corpus, 2 added\n3 passages + 2 = 5: {out}\n"
    )
    assert errors == ""
    assert json.loads(report.read_text())["files"][0]["added"] == 2
    with pytest.raises(ValueError, match="is there already; name another file"):
        program.main(["complete_corpus", *arguments])
