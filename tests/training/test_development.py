"""Which development questions are asked, and that the scores before training are asked for once."""

import json
from typing import ClassVar

import pytest

from sr1_jax.data.questions import Question
from sr1_jax.training import development as module
from sr1_jax.training.development import Development
from sr1_jax.training.settings import default_config
from sr1_jax.training.task import Task

QUESTIONS = [Question(f"{s}:dev:{i}", "?", ("x",)) for s in ("nq", "musique") for i in range(40)]


class CountingEvaluator:
    """In the place of the real one: remembers what it was asked."""

    runs: ClassVar[list] = []

    def __init__(self, policy, tokenizer, retriever, config, method, *, mesh):
        self._of = (retriever, method)

    def run(self, params, questions):
        self.runs.append((*self._of, [question.id for question in questions]))
        return {"greedy/em": len(self.runs) / 10}, ["trajectory"]


@pytest.fixture
def make(monkeypatch):
    """Function of settings of evaluation -> (development, what was run)."""

    def make(questions=QUESTIONS, while_training=200, **settings):
        config = default_config()
        config.evaluation.questions = while_training
        config.evaluation.update(settings)
        task = Task(
            train=[],
            dev={"merged": questions} if questions else {},
            retriever="retriever",
            contents={},
            other_worlds={"moved": ("other retriever", QUESTIONS[:8])},
        )
        found = Development(config, task, "policy", "tokenizer", "mesh", method="rag")
        return found, CountingEvaluator.runs

    monkeypatch.setattr(module, "Evaluator", CountingEvaluator)
    monkeypatch.setattr(CountingEvaluator, "runs", [])
    return make


def sources(ids):
    return [id.partition(":")[0] for id in ids]


def test_each_source_has_its_share(make):
    """Formerly the head of the merged file: one source alone."""
    development, runs = make(final_questions=30)
    development.final("params")
    ((_, method, ids),) = runs
    assert method == "rag" and development.name == "merged" and development.count == 30
    assert sources(ids).count("nq") == sources(ids).count("musique") == 15


def test_all_of_them_stand_as_they_are(make):
    development, runs = make(final_questions=400)
    development.final("params")
    assert runs[0][2] == [question.id for question in QUESTIONS]


def test_while_training_others_may_be_asked(make):
    development, runs = make(while_training=20, final_questions=30)
    assert development.while_training("params") == {"greedy/em": 0.1}
    assert len(runs[0][2]) == 20 and sources(runs[0][2]).count("nq") == 10


def test_other_worlds_have_retrievers_of_their_own(make):
    development, runs = make(final_questions=4)
    assert development.other_worlds("params") == {"moved": {"greedy/em": 0.1}}
    ((retriever, _, ids),) = runs
    assert retriever == "other retriever" and len(ids) == 4


def test_without_questions_nothing_is_run(make, tmp_path):
    for development, runs in (make(questions=[]), make(final_questions=0)):
        assert development.count == 0
        assert development.final("params") == ({}, [])
        assert development.before("params", tmp_path, {}) == {}
        assert development.other_worlds("params") == {}
        assert runs == []
    assert make(questions=[])[0].while_training("params") == {}
    assert list(tmp_path.iterdir()) == []


def test_scores_before_training_are_kept(make, tmp_path):
    """Formerly each restart asked all questions again."""
    facts = {"config": {"gamma": 1.0}}
    development, runs = make(final_questions=10)
    scores = development.before("params", tmp_path, facts)
    assert len(runs) == 1
    again, _ = make(final_questions=10)
    assert again.before("params", tmp_path, facts) == scores and len(runs) == 1
    # Of other settings, other questions or a damaged file they are no news.
    assert again.before("params", tmp_path, {"config": {"gamma": 0.5}}) != scores
    assert len(runs) == 2
    make(final_questions=12)[0].before("params", tmp_path, {"config": {"gamma": 0.5}})
    assert len(runs) == 3
    make(final_questions=12, sampled=False)[0].before("params", tmp_path, {})
    assert len(runs) == 4
    (tmp_path / "before.json").write_text("{")
    make(final_questions=12, sampled=False)[0].before("params", tmp_path, {})
    assert len(runs) == 5
    assert json.loads((tmp_path / "before.json").read_text())["scores"] == {"greedy/em": 0.5}
