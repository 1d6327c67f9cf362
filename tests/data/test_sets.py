"""Question sets by name: where they are looked for, what their rows become, what is refused."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import QuestionFile, read_questions
from sr1_jax.data.sets import MIXTURES, SETS, is_name, question_files, read_set

# Real questions, in a folder beside the repository where there is one.
QA = next(
    (
        folder
        for parent in Path(__file__).resolve().parents
        if (folder := parent / "shared" / "data" / "qa").is_dir()
    ),
    None,
)


def write_lines(path, *ids, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({"id": id, "question": "Who?", "golden_answers": ["Ann"]} | changes for id in ids)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def search_r1_row(source, index, split="train", **changes):
    asked = f"Answer the given question. Question: Who is {index}?\n"
    row = {
        "data_source": source,
        "prompt": [{"role": "user", "content": asked}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": [f"A{index}", "B"]}},
        "extra_info": {"split": split, "index": index},
    }
    return row | changes


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def quiet(text):
    raise AssertionError(text)


@pytest.fixture
def told():
    return []


# Where sets are looked for


@pytest.mark.parametrize(
    "place",
    ["nq/test.jsonl", "nq/test.jsonl.gz", "nq_test.jsonl", "test_nq.jsonl", "test_nq.jsonl.gz"],
)
def test_flashrag_files(tmp_path, told, place):
    path = write_lines(tmp_path / place, "test_0", "test_17")
    if place.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    for spec in ("nq", "nq:test"):
        questions = read_set(spec, tmp_path, tell=told.append)
        assert [q.id for q in questions] == ["nq:test:0", "nq:test:17"]
        assert [q.source for q in questions] == ["nq", "nq"]


@pytest.mark.parametrize("place", ["", "nq_hotpotqa_train/", "nq_search/"])
def test_search_r1_files(tmp_path, told, place):
    rows = [search_r1_row(name, i) for i, name in enumerate(["nq", "hotpotqa", "nq"])]
    write_parquet(tmp_path / place / "train.parquet", rows)
    questions = read_set("nq", tmp_path, training=True, tell=told.append)
    assert [q.id for q in questions] == ["nq:train:0", "nq:train:2"]
    assert [q.question for q in questions] == ["Who is 0?", "Who is 2?"]
    assert questions[1].golden_answers == ("A2", "B")
    both = read_set("nq_hotpotqa:train", tmp_path, tell=told.append)
    assert [q.source for q in both] == ["nq", "nq", "hotpotqa"]
    # A set that the file has no rows of is not there.
    with pytest.raises(FileNotFoundError, match="musique:train is not in"):
        read_set("musique:train", tmp_path)


def test_search_r1s_test_file_has_of_each_set_what_is_evaluated(tmp_path, told):
    rows = [search_r1_row(name, 0, "test") for name in SETS]
    write_parquet(tmp_path / "test.parquet", rows)
    for name, one in SETS.items():
        (question,) = read_set(name, tmp_path, tell=told.append)
        assert question.id == f"{name}:{one.evaluated}:0"
    with pytest.raises(FileNotFoundError, match="nq:dev is not in"):
        read_set("nq:dev", tmp_path)


def test_the_training_split_is_meant_for_training(tmp_path, told):
    write_lines(tmp_path / "hotpotqa/train.jsonl", "train_0")
    write_lines(tmp_path / "hotpotqa/dev.jsonl", "dev_0")
    ids = [
        read_set("hotpotqa", tmp_path, training=training, tell=told.append)[0].id
        for training in (True, False)
    ]
    assert ids == ["hotpotqa:train:0", "hotpotqa:dev:0"]


def test_a_path_is_a_path(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", "7")
    assert [q.id for q in read_set(path)] == ["7"] and read_set(path)[0].source == "mine"
    assert question_files(str(path)) == [QuestionFile(path)]
    # ./nq is a file where nq is a set.
    assert is_name("nq") and is_name("nq:dev") and is_name("nq_hotpotqa")
    assert not is_name("./nq") and not is_name("nq.jsonl")


def test_every_missing_file_says_what_was_tried_and_what_to_do(tmp_path):
    for name, one in SETS.items():
        with pytest.raises(FileNotFoundError) as caught:
            read_set(name, tmp_path)
        said = str(caught.value)
        for stem in (f"{name}/{one.evaluated}", f"{name}_{one.evaluated}", f"{one.evaluated}_"):
            assert stem in said
        assert f"test.parquet (rows with data_source {name})" in said
        assert f"hf download RUC-NLPIR/FlashRAG_datasets {name}/" in said
        assert str(tmp_path) in said and "\n" not in said
    with pytest.raises(FileNotFoundError, match="bamboogle has no official split train; it has te"):
        read_set("bamboogle:train", tmp_path)


@pytest.mark.parametrize(
    ("spec", "folder", "error", "message"),
    [
        ("nq:validation", True, ValueError, "the splits of a set are train, dev, test, not 'valid"),
        ("nq:", True, ValueError, "not ''"),
        ("nq", False, ValueError, "nq names a question set: set data.folder"),
        ("nqq", True, FileNotFoundError, r"neither a file nor a question set.* Did you mean nq\?"),
        ("squad:dev", True, FileNotFoundError, "the sets are nq, triviaqa, popqa, hotpotqa, 2wiki"),
        ("none.jsonl", True, FileNotFoundError, "none.jsonl: no such file"),
    ],
)
def test_specs_that_mean_nothing(tmp_path, spec, folder, error, message):
    with pytest.raises(error, match=message):
        read_set(spec, tmp_path if folder else "")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; nq is looked for in it"):
        read_set("nq", tmp_path / "none")


def test_the_table():
    """Sizes as published (arXiv 2503.09516, appendix)."""
    evaluated = {name: one.sizes[one.evaluated] for name, one in SETS.items()}
    assert evaluated == {
        "nq": 3610, "triviaqa": 11313, "popqa": 14267, "hotpotqa": 7405, "2wikimultihopqa": 12576,
        "musique": 2417, "bamboogle": 125,
    }  # fmt: skip
    trained = {name: SETS[name].sizes["train"] for name in MIXTURES["nq_hotpotqa"]}
    assert trained == {"nq": 79168, "hotpotqa": 90447}


# Ids


@pytest.mark.parametrize(
    ("id", "want"),
    [
        ("train_0", "nq:train:0"),
        ("dev_3", "nq:train:3"),
        ("5a8b57f25542995d1e6f1371", "nq:train:5a8b57f25542995d1e6f1371"),
        (12, "nq:train:12"),
        ("nq:dev:nq_1001", "nq:dev:nq_1001"),
        ("2hop__482757_12019", "nq:train:2hop__482757_12019"),
        ("hotpotqa:dev:5", "nq:train:hotpotqa:dev:5"),
    ],
)
def test_ids_are_source_split_index(tmp_path, told, id, want):
    write_lines(tmp_path / "nq/train.jsonl", id)
    assert [q.id for q in read_set("nq:train", tmp_path, tell=told.append)] == [want]


def test_rows_without_an_id_are_counted(tmp_path, told):
    row = '{"question": "Who?", "golden_answers": ["Ann"]}\n'
    (tmp_path / "nq_train.jsonl").write_text(row + "\n" + row)
    ids = [q.id for q in read_set("nq:train", tmp_path, tell=told.append)]
    assert ids == ["nq:train:0", "nq:train:2"]  # by line, so that an id names its line


def test_duplicates_are_refused_with_their_rows(tmp_path):
    path = write_lines(tmp_path / "nq_train.jsonl", "train_0", "0")
    with pytest.raises(ValueError, match=r"nq_train\.jsonl:2: duplicate id 'nq:train:0', first us"):
        read_set("nq:train", tmp_path)
    rows = [search_r1_row("nq", 4), search_r1_row("nq", 4)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(ValueError, match=r"x\.parquet, row 2: duplicate id 'nq:train:4', first us"):
        read_questions(path)


# Rows of Search-R1


def test_published_columns_win_over_the_prompt(tmp_path):
    row = search_r1_row("nq", 9, id="train_3", question="Whose?", golden_answers=["C"])
    (question,) = read_questions(write_parquet(tmp_path / "t.parquet", [row]))
    assert (question.id, question.question) == ("nq:train:3", "Whose?")
    assert question.golden_answers == ("C",)


def test_a_single_answer_may_be_text(tmp_path):
    row = search_r1_row("nq", 1, reward_model={"ground_truth": {"target": "yes"}})
    (question,) = read_questions(write_parquet(tmp_path / "t.parquet", [row]))
    assert question.golden_answers == ("yes",)


def test_rows_without_extra_info_are_named_by_file_and_row(tmp_path):
    rows = [search_r1_row("nq", i, extra_info=None) for i in range(2)]
    path = write_parquet(tmp_path / "test.parquet", rows)
    assert [q.id for q in read_questions(path)] == ["nq:test:0", "nq:test:1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_source": None}, "data_source must name a set, found None"),
        ({"prompt": None}, "no prompt whose last user message has the question"),
        ({"prompt": [{"role": "user", "content": "Who?"}]}, "no prompt whose last user message"),
        ({"prompt": [{"role": "system", "content": "Question: x"}]}, "no prompt whose last user"),
        ({"prompt": [{"role": "user", "content": "Question: \n"}]}, "no prompt whose last user"),
        ({"reward_model": None}, "no answers: neither golden_answers nor reward_model"),
        ({"reward_model": {"ground_truth": None}}, "no answers: neither golden_answers"),
        ({"reward_model": {"ground_truth": {"target": []}}}, "golden_answers is empty"),
        ({"reward_model": {"ground_truth": {"target": [" "]}}}, "holds a blank answer"),
        ({"reward_model": {"ground_truth": {"target": [3]}}}, "must be a list of strings, found 3"),
        ({"id": " "}, "id is empty"),
    ],
)
def test_faults_name_file_and_row(tmp_path, changes, message):
    # A file of one row: a column has one type.
    path = write_parquet(tmp_path / "t.parquet", [search_r1_row("nq", 0, **changes)])
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}, row 1: ")


def test_a_parquet_file_of_something_else(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", [{"text": "hello"}])
    with pytest.raises(ValueError, match="neither a column question nor a column prompt, but text"):
        read_questions(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"t\.parquet: not a parquet file, or damaged"):
        read_questions(path)
    write_parquet(path, [search_r1_row("nq", i) for i in range(5000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.parquet.*damaged"):
        read_questions(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "t.parquet", [search_r1_row("nq", 0)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match="needs pyarrow; pip install pyarrow"):
        read_questions(path)


def test_metadata_of_parquet_can_be_prepared(tmp_path):
    """Also where JSON has no form for it."""
    import datetime

    row = search_r1_row("nq", 0, metadata={"day": datetime.date(2020, 1, 2), "level": "hard"})
    path = write_parquet(tmp_path / "t.parquet", [row])
    fingerprint = prepare_questions({"train": path}, tmp_path / "data")
    (question,) = open_questions(tmp_path / "data", "train", fingerprint)
    assert question.metadata == {"day": "2020-01-02", "level": "hard"}


# Sizes


def test_another_size_is_told_and_not_refused(tmp_path, told):
    write_lines(tmp_path / "nq_test.jsonl", *range(3))
    read_set("nq", tmp_path, tell=told.append)
    assert len(told) == 1
    assert told[0].startswith("nq:test has 3 questions here, officially 3,610")
    write_lines(tmp_path / "bamboogle_test.jsonl", *range(125))
    read_set("bamboogle", tmp_path, tell=quiet)
    # There is no official size of a split that is not official.
    write_lines(tmp_path / "dev_popqa.jsonl", 1)
    read_set("popqa:dev", tmp_path, tell=quiet)


def test_by_default_it_is_told_on_stderr(tmp_path, capsys):
    write_lines(tmp_path / "nq_test.jsonl", 1)
    read_set("nq", tmp_path)
    assert "officially 3,610" in capsys.readouterr().err


def test_prepared_questions_keep_their_sources(tmp_path):
    rows = [search_r1_row(name, i) for i, name in enumerate(["nq", "hotpotqa", "nq"])]
    write_parquet(tmp_path / "train.parquet", rows)
    mine = write_lines(tmp_path / "mine.jsonl", "7")
    files = [*question_files("nq_hotpotqa", tmp_path, training=True), mine]
    fingerprint = prepare_questions({"train": files}, tmp_path / "data")
    source = open_questions(tmp_path / "data", "train", fingerprint)
    assert [q.source for q in source] == ["nq", "nq", "hotpotqa", "mine"]
    assert source.index.sources == ("nq", "hotpotqa", "mine")
    assert source.index.source_Q.tolist() == [0, 0, 1, 2]
    assert source.index.bytes_Q.tolist() == [9, 9, 9, 4]
    # The same file under another name is something else.
    other = [QuestionFile(files[0].path, "nq", "dev"), *files[1:]]
    assert prepare_questions({"train": other}, tmp_path / "data") != fingerprint


@pytest.mark.skipif(QA is None, reason="the shared data are not here")
@pytest.mark.parametrize("name", [name for name in SETS if name != "triviaqa"])
def test_real_questions(name, told):
    questions = read_set(f"{name}:dev", QA, tell=told.append)
    assert len(questions) >= 55 and all(q.id.startswith(f"{name}:") for q in questions)
    assert bool(told) == ("dev" in SETS[name].sizes)
