"""Scores of what was retrieved, on hand-made passages."""

import math

import pytest

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.retrieved import answer_retrieved, gold_recall
from sr1_jax.retrieval.base import Passage


def passage(title, text="", id="0"):
    return Passage(id, title, text, 1.0)


def asked(*answers, **metadata):
    return Question("q", "?", answers or ("x",), metadata)


@pytest.fixture
def found(make_trajectory):
    return make_trajectory(
        passages=[[passage("Ed Wood", "He made films."), passage("Paris")], [passage("Ed  wood")]],
        prompt_passages=[passage('"Scott Derrickson"', "An American, of the party.")],
    )


@pytest.mark.parametrize(
    ("titles", "recall"),
    [
        (["Ed Wood", "Scott Derrickson"], 1.0),
        (["Ed Wood", "ed wood"], 1.0),  # one title
        (["Lyon", "Paris", "Rome", "Ed Wood"], 0.5),
        (["Lyon"], 0.0),
        ((), math.nan),
        (None, math.nan),
    ],
)
def test_gold_recall(found, titles, recall):
    assert gold_recall(found, asked(supporting_titles=titles)) == pytest.approx(recall, nan_ok=True)


def test_titles_are_unknown_to_most_sets(found):
    assert math.isnan(gold_recall(found, asked()))


@pytest.mark.parametrize("titles", ["Ed Wood", [1], {"title": []} | {"x": 1}])
def test_titles_of_another_form_are_refused(found, titles):
    with pytest.raises(ValueError, match=r"Question q: metadata\.supporting_titles must be a list"):
        gold_recall(found, asked(supporting_titles=titles))


@pytest.mark.parametrize(
    ("answers", "there"),
    [
        (["american"], 1.0),
        (["The Films"], 1.0),  # articles and case aside
        (["Rome", "Ed Wood!"], 1.0),  # any of them, titles included
        (["art"], 0.0),  # no part of "party"
        (["yes"], math.nan),
        (["no", "the"], math.nan),
        (["yes", "Rome"], 0.0),
    ],
)
def test_answer_retrieved(found, answers, there):
    assert answer_retrieved(found, asked(*answers)) == pytest.approx(there, nan_ok=True)


def test_nothing_was_retrieved(make_trajectory):
    nothing = make_trajectory()
    assert gold_recall(nothing, asked(supporting_titles=["Ed Wood"])) == 0.0
    assert answer_retrieved(nothing, asked("Ed")) == 0.0
