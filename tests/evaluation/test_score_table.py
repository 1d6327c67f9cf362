"""Scores by trajectory: means, values by question, and the file."""

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.score_table import (
    read_scores,
    score_path,
    score_table,
    write_scores,
)
from sr1_jax.evaluation.scores import SCORES, score
from sr1_jax.retrieval.base import Passage

QUESTIONS = [
    Question("a", "?", ("x",), {"supporting_titles": ["A", "B"]}),
    Question("b", "?", ("x",)),
    Question("c\nd\x00", "?", ("x",)),
]


@pytest.fixture
def run(make_trajectory):
    """Two samples a question: of a both are right, of b one, of the last none."""
    answers = [("x", "X"), (None, "x"), ("y", "z")]
    return [
        make_trajectory(
            question_id=question.id,
            sample=sample,
            answer=answer,
            golden_answers=("x",),
            passages=[[Passage("0", "A", "x", 1.0)]],
        )
        for question, row in zip(QUESTIONS, answers)
        for sample, answer in enumerate(row)
    ]


def test_means_are_those_of_the_one_list(run):
    table = score_table(run, QUESTIONS, retrieves=True)
    means = table.means()
    assert {one.key: means[one.key] for one in SCORES} == pytest.approx(score(run))
    assert means["gold_recall"] == 0.5  # of the one question whose titles are known
    assert means["answer_retrieved"] == 1.0
    assert (means["pass@2"], means["majority@2"]) == pytest.approx((2 / 3, 2 / 3))
    assert "judge" not in means and means["latency_seconds"] == 0.0
    assert score_table(run, QUESTIONS, retrieves=True, judged=[1, 1, 1, 0, 0, 0]).means()[
        "judge"
    ] == pytest.approx(0.5)


def test_what_retrieves_nothing_has_no_recall(run):
    assert not {"gold_recall", "answer_retrieved"} & set(
        score_table(run, QUESTIONS, retrieves=False).means()
    )


def test_one_sample_has_no_best_of_k(run):
    assert not score_table(run[::2], QUESTIONS, retrieves=True).by_question


def test_values_by_question(run):
    table = score_table(run, QUESTIONS, retrieves=True)
    assert {q: row.tolist() for q, row in table.values("em").items()} == {
        "a": [1, 1], "b": [0, 1], "c\nd\x00": [0, 0],
    }  # fmt: skip
    assert {q: row.tolist() for q, row in table.values("pass@2").items()} == {
        "a": [1], "b": [1], "c\nd\x00": [0],
    }  # fmt: skip


def test_all_values_at_once(run):
    uneven = [run[4], *run[:3], run[5]]  # the last question first, of b one sample
    table = score_table(uneven, QUESTIONS, retrieves=True)
    every = table.all_values()
    assert set(every) == set(table.means()) and not table.by_question
    assert table.questions == ("c\nd\x00", "a", "b")
    for key, rows in every.items():
        wanted = [*table.values(key).values()]
        for row, want in zip(rows, wanted, strict=True):
            np.testing.assert_array_equal(row[: len(want)], want)
            assert np.isnan(row[len(want) :]).all()
    assert score_table(run, QUESTIONS, retrieves=True).all_values()["pass@2"].shape == (3, 1)


def test_a_file_holds_all_of_it(run, tmp_path):
    table = score_table(run, QUESTIONS, retrieves=True)
    path = score_path(tmp_path / "nq.search.step_2.greedy.json")
    assert path.name == "nq.search.step_2.greedy.scores.npz"
    write_scores(path, table)
    again = read_scores(path)
    assert (again.question_ids, again.samples) == (table.question_ids, table.samples)
    for got, want in ((again.columns, table.columns), (again.by_question, table.by_question)):
        assert list(got) == list(want)
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    write_scores(path, table)
    assert path.read_bytes() == first


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"none\.npz: there is no such file of scores; evaluate"):
        read_scores(tmp_path / "none.npz")
    for content in (b"", b"PK\x03\x04 cut", b"{}"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz is damaged \(.*\); evaluate again"):
            read_scores(tmp_path / "bad.npz")
