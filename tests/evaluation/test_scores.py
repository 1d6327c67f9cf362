"""Scores of trajectories against hand numbers."""

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.scores import (
    SCORES,
    clustered_standard_error,
    hops_of,
    questions_sha256,
    score,
    score_of_those_run,
    standard_error,
)


def test_hand_numbers(make_trajectory):
    run = [
        # Of six tokens after a prompt of two the policy wrote four.
        make_trajectory(
            ids=range(8),
            mask=[0, 0, 1, 1, 0, 0, 1, 1],
            prompt_length=2,
            answer="The Bob!",
            golden_answers=("Al", "bob"),
            searches=["a", "b"],
            segments=3,
            status="answered",
            well_formed=True,
        ),
        # "bob bel" against "bob": precision 1/2, recall 1.
        make_trajectory(
            ids=range(5),
            mask=[0, 0, 0, 1, 1],
            prompt_length=3,
            answer="Bob Bel",
            golden_answers=("Bob",),
            segments=1,
            status="answered",
        ),
        make_trajectory(
            ids=range(3), mask=[0, 1, 1], prompt_length=1, segments=2, status="truncated"
        ),
        make_trajectory(ids=range(4), mask=[0, 1, 1, 1], prompt_length=1, status="no_answer"),
    ]
    assert score(run) == pytest.approx(
        {
            "em": 1 / 4,
            "f1": (1 + 2 / 3) / 4,
            "substring": 2 / 4,
            "searches": 2 / 4,
            "segments": (3 + 1 + 2 + 1) / 4,
            "response_tokens": (6 + 2 + 2 + 3) / 4,
            "policy_tokens": (4 + 2 + 2 + 3) / 4,
            "well_formed": 1 / 4,
            "answered": 2 / 4,
            "truncated": 1 / 4,
            "no_answer": 1 / 4,
        }
    )
    assert all(type(value) is float for value in score(run).values())


def test_the_reward_is_not_what_is_scored(make_trajectory):
    assert score([make_trajectory(answer="x", golden_answers=("y",), reward=1.0)])["em"] == 0.0


def test_exact_match_by_hops(make_trajectory):
    answers = ["x", "x", "no", "x", None]
    run = [make_trajectory(answer=a, golden_answers=("x",)) for a in answers]
    scores = score(run, [1, 2, 2, 2, 4])
    by_hops = {key: value for key, value in scores.items() if key.endswith("_hop")}
    assert by_hops == pytest.approx({"em_1_hop": 1.0, "em_2_hop": 2 / 3, "em_4_hop": 0.0})
    assert scores["em"] == 3 / 5
    assert not any("hop" in key for key in score(run))


def test_hops_of_questions():
    one, two = (Question(f"q{n}", "?", ("x",), {"hops": n}) for n in (1, 2))
    unknown = Question("q", "?", ("x",))
    assert hops_of([one, two, one]) == [1, 2, 1]
    assert hops_of([one, unknown]) is None
    assert hops_of([unknown]) is None


def test_standard_error():
    # A share of 0.2 of 400: the root of 0.16 / 400.
    assert standard_error(0.2, 400) == pytest.approx(0.02)
    assert standard_error(0.0, 10) == standard_error(1.0, 10) == 0.0
    draws = np.random.default_rng(0).binomial(50, 0.3, size=40_000) / 50
    assert standard_error(0.3, 50) == pytest.approx(draws.std(), rel=0.02)


def test_questions_that_were_left_out_do_not_shift_the_hops(make_trajectory):
    questions = [Question(i, "?", ("x",), {"hops": n}) for i, n in (("a", 1), ("b", 2), ("c", 1))]
    run = [
        make_trajectory(question_id=i, answer=answer, golden_answers=("x",))
        for i, answer in (("b", "x"), ("c", "y"))
    ]
    found = score_of_those_run(run, questions)
    assert (found["em"], found["em_1_hop"], found["em_2_hop"]) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="None of 3 questions fits"):
        score_of_those_run([], questions)


def test_scores_by_source(make_trajectory):
    questions = [
        Question(f"{s}:dev:{n}", "?", ("x",)) for s, n in (("nq", 0), ("nq", 1), ("hp", 0))
    ]
    run = [
        make_trajectory(question_id=q.id, answer=answer, golden_answers=("x",))
        for q, answer in zip(questions, ("x", "y", "x"))
    ]
    found = score_of_those_run(run, questions)
    assert found["em"] == pytest.approx(2 / 3)
    assert (found["em/nq"], found["em/hp"], found["em_macro"]) == (0.5, 1.0, 0.75)
    assert not any("/" in key or "macro" in key for key in score_of_those_run(run[:2], questions))


def test_scores_by_kind(make_trajectory):
    given = [("a", "one_hop", "Paris"), ("b", "comparison", "Rome"), ("c", "one_hop", "Oslo")]
    questions = [Question(i, "?", ("Paris",), {"kind": kind}) for i, kind, _ in given]
    trajectories = [
        make_trajectory(question_id=i, answer=answer, golden_answers=("Paris",))
        for i, _, answer in given
    ]
    scores = score_of_those_run(trajectories, questions)
    by_kind = {key: value for key, value in scores.items() if key.startswith("em/kind/")}
    assert by_kind == {"em/kind/one_hop": 0.5, "em/kind/comparison": 0.0}
    # Not where it is known of some only.
    questions[2] = Question("c", "?", ("Paris",))
    assert not any("kind" in key for key in score_of_those_run(trajectories, questions))


def test_standard_error_of_questions_asked_several_times():
    # Means of the questions: 1, 1/2 and 0; their deviation is sqrt(1/6), over sqrt(3).
    values = [1, 1, 1, 0, 0, 0]
    ids = ["a", "a", "b", "b", "c", "c"]
    assert clustered_standard_error(values, ids) == pytest.approx(np.sqrt(1 / 6) / np.sqrt(3))
    order = [3, 0, 5, 1, 4, 2]
    assert clustered_standard_error(
        [values[i] for i in order], [ids[i] for i in order]
    ) == pytest.approx(np.sqrt(1 / 18))
    once = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert clustered_standard_error(once, "abcde") == pytest.approx(standard_error(3 / 5, 5))
    # Samples that agree tell nothing that one of them does not.
    assert clustered_standard_error(once * 3, "abcde" * 3) == pytest.approx(
        standard_error(3 / 5, 5)
    )


def test_the_hash_of_a_set_of_questions():
    one, two = (Question(f"q{n}", f"Who {n}?", ("x",)) for n in (1, 2))
    assert questions_sha256([one, two]) == questions_sha256([two, one])
    others = ([one], [two], [one, Question("q2", "Who 3?", ("x",))], [])
    assert len({questions_sha256(s) for s in ([one, two], *others)}) == 5
    # Two questions are never taken for one with their texts joined.
    joined = Question("q1", 'Who 1?"], ["q2", "Who 2?', ("x",))
    assert questions_sha256([joined]) != questions_sha256([one, two])


def test_every_score_is_counted_once():
    keys = [one.key for one in SCORES]
    assert len(keys) == len(set(keys))
