"""Tasks of files: several question files, an index built before, and what is remembered of both."""

import json
from pathlib import Path

import pytest

from sr1_jax.retrieval import BM25Retriever
from sr1_jax.training.settings import default_config
from sr1_jax.training.task import files_task


@pytest.fixture
def config(tmp_path):
    """A corpus, two files of training questions, two of development questions."""
    config = default_config()
    data = config.data
    data.corpus = write_corpus(tmp_path / "corpus.jsonl", "Ann was born in Bo.", "Cy is a cook.")
    data.questions = ",".join(write_questions(tmp_path, name, 2) for name in ("nq", "triviaqa"))
    data.dev = ",".join(write_questions(tmp_path, name, 3) for name in ("bamboogle", "musique"))
    return config


def write_corpus(path, *texts):
    rows = ({"id": str(i), "contents": f"T{i}\n{text}"} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_questions(folder, source, count):
    path = folder / f"{source}.jsonl"
    rows = (
        {"id": f"{source}:x:{i}", "question": "Where?", "golden_answers": ["Bo"]}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_several_files(config, tmp_path):
    task = files_task(config, tmp_path / "run")
    train = [task.train[i].id for i in range(len(task.train))]
    assert train == ["nq:x:0", "nq:x:1", "triviaqa:x:0", "triviaqa:x:1"]
    ((name, dev),) = task.dev.items()
    assert name == "bamboogle+musique"
    assert [question.source for question in dev] == ["bamboogle"] * 3 + ["musique"] * 3
    assert task.retriever.search(["born"], 1)[0][0].id == "0"
    assert task.supervised is None and task.other_worlds == {}


def test_training_without_development_questions_is_told(config, tmp_path, capsys):
    config.data.dev = ""
    files_task(config, tmp_path / "run")
    assert "data.dev is not set: no checkpoint gets a score" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["data.questions", "data.dev", "data.corpus"])
def test_contents_are_those_of_the_files(config, tmp_path, changed):
    """Whatever they are called: a run may be moved, but not fed with something else."""
    before = files_task(config, tmp_path / "run").contents
    assert set(before) == {"data.questions", "data.dev", "data.corpus"}
    name = changed.partition(".")[2]
    first = config.data[name].split(",")[0]
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copy.jsonl"
    copy.write_text(Path(first).read_text())
    config.data[name] = config.data[name].replace(first, str(copy))
    assert files_task(config, tmp_path / "run").contents == before
    copy.write_text(copy.read_text().replace("Bo", "Mu"))
    after = files_task(config, tmp_path / "run").contents
    assert {key for key in before if before[key] != after[key]} == {changed}


def test_an_index_built_before(config, tmp_path):
    BM25Retriever.build(config.data.corpus, tmp_path / "index")
    built = files_task(config, tmp_path / "run")
    config.data.index = str(tmp_path / "index")
    both = files_task(config, tmp_path / "other")
    config.data.corpus = ""
    alone = files_task(config, tmp_path / "other")
    assert built.contents == both.contents == alone.contents
    assert alone.retriever.search(["born"], 1)[0][0].id == "0"
    data = tmp_path / "other" / "data"
    assert [path.name for path in data.iterdir() if path.suffix != ".json"] == ["questions"]


def test_an_index_of_another_corpus_or_of_other_options(config, tmp_path):
    other = write_corpus(tmp_path / "other.jsonl", "Nothing of the kind.")
    BM25Retriever.build(other, tmp_path / "index", b=0.9)
    config.data.index = str(tmp_path / "index")
    with pytest.raises(ValueError, match=r"built with b=0\.9, but retrieval\.b is 0\.4"):
        files_task(config, tmp_path / "run")
    config.retrieval.b = 0.9
    with pytest.raises(ValueError, match=r"data\.index=.* of another corpus than data\.corpus="):
        files_task(config, tmp_path / "run")
    config.data.index = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none: no such index"):
        files_task(config, tmp_path / "run")


class Memory:
    """A retriever that needs no corpus and does not say what it is made of."""

    def __init__(self, config, corpus, index):
        self.corpus = corpus

    def search(self, queries, k):
        return [[] for _ in queries]


def test_nothing_is_assumed_of_a_retriever(config, tmp_path):
    config.retrieval.kind = "test_files_task:Memory"
    config.data.corpus = ""
    task = files_task(config, tmp_path / "run")
    assert task.retriever.corpus is None
    assert task.contents["data.corpus"] == ""
