"""The task of a fictional world: complete, written once, and only one world a folder."""

import json

import pytest

from sr1_jax.data.questions import read_questions
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import default_config
from sr1_jax.world import task as task_module
from sr1_jax.world.harder.questions import SHARES
from sr1_jax.world.kinds import WORLDS
from sr1_jax.world.task import world_task


@pytest.fixture
def config():
    config = default_config()
    config.data.world_people = 64
    return config


def test_what_a_task_has(config, tmp_path):
    task = world_task(config, tmp_path)
    (dev,) = task.dev.values()
    assert list(task.dev) == ["heldout"] and len(dev) > 100
    assert dev == read_questions(tmp_path / "data" / "heldout.jsonl")
    assert {question.source for question in dev} == {"world"}
    train = [task.train[i] for i in range(len(task.train))]
    assert train == read_questions(tmp_path / "data" / "train.jsonl")
    assert set(task.contents) == {"data.questions", "data.corpus"} and all(task.contents.values())
    assert task.contents["data.corpus"] == task.retriever.fingerprint

    # The same questions of the other facts, in which other answers are right.
    ((name, (retriever, changed)),) = task.other_worlds.items()
    assert name == "facts_changed" and len(changed) == len(dev)
    assert retriever.fingerprint != task.retriever.fingerprint
    one_hop = {q.id: q.golden_answers for q in dev if q.metadata["hops"] == 1}
    other = {q.id: q.golden_answers for q in changed if q.id in one_hop}
    assert other and sum(other[id] != one_hop[id] for id in other) > len(other) / 2


def test_it_is_written_once(config, tmp_path, monkeypatch):
    first = world_task(config, tmp_path)
    monkeypatch.setattr(task_module, "write_corpus", None)
    again = world_task(config, tmp_path)
    assert again.contents == first.contents and again.dev == first.dev
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 1), ("data.world_people", 80), ("data.world", "harder")]
)
def test_a_folder_holds_one_world(config, tmp_path, key, value):
    world_task(config, tmp_path)
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(ValueError, match=rf"data holds the world of {key}=.*, now it is {value}"):
        world_task(config, tmp_path)


def test_a_folder_of_before_there_were_kinds_of_world_holds_the_demo(config, tmp_path):
    world_task(config, tmp_path)
    record = tmp_path / "data" / "world.json"
    drawn_by = json.loads(record.read_text())
    assert drawn_by.pop("data.world") == "demo"
    record.write_text(json.dumps(drawn_by))
    world_task(config, tmp_path)
    config.data.world = "harder"
    with pytest.raises(ValueError, match=r"holds the world of data\.world=demo, now it is harder"):
        world_task(config, tmp_path)


def test_the_task_of_the_harder_world(config, tmp_path):
    config.data.world = "harder"
    task = world_task(config, tmp_path)
    (dev,) = task.dev.values()
    assert {question.metadata["kind"] for question in dev} == set(SHARES)
    assert dev == read_questions(tmp_path / "data" / "heldout.jsonl")
    ((changed_retriever, changed),) = task.other_worlds.values()
    assert changed_retriever.fingerprint != task.retriever.fingerprint
    assert {question.metadata["kind"] for question in changed} == set(SHARES)
    assert 0.5 < task.supervised.ceiling() <= 1


def test_settings_name_every_kind_of_world(config):
    for name in WORLDS:
        config.data.world = name
        check_config(config)
    config.data.world = "hardest"
    with pytest.raises(ValueError, match=f"data.world must be one of {', '.join(WORLDS)}"):
        check_config(config)


def test_other_worlds_of_the_warm_start_take_settings_as_the_run_does(config, tmp_path):
    """They were built with the words "none" for names, which no stemmer has."""
    config.retrieval.stemmer = config.retrieval.stopwords = "none"
    config.warm_start.worlds = 2
    task = world_task(config, tmp_path)
    assert task.retriever.manifest["stemmer"] is None
    assert task.supervised.tokenizer().vocab_size > 256
