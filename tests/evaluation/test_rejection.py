"""Rejection sampling: which trajectories become examples, and what an example holds."""

import json

import pytest

from sr1_jax.evaluation.rejection import examples_of, write_examples


@pytest.fixture
def sampled(make_trajectory):
    def make(id, sample, answer, ids=(5, 6, 7), mask=(0, 1, 1)):
        return make_trajectory(
            question_id=id, sample=sample, answer=answer, ids=ids, mask=mask,
            golden_answers=("Bob", "Robert"),
        )  # fmt: skip

    return [
        make("a", 0, "the Bob!"),
        make("a", 1, "Al", (5, 6, 8)),
        make("a", 2, "Robert", (5, 9, 4, 7), (0, 1, 0, 1)),
        make("a", 3, "Bob"),  # says again what sample 0 says
        make("b", 0, None, (4, 1)),
        make("c", 0, "", (3, 1), (0, 1)),
        make("d", 0, "bob", (2, 6, 7)),
    ]


def test_correct_ones_are_kept_once(sampled):
    assert examples_of(sampled) == [
        {"id": "a", "sample": 0, "answer": "the Bob!", "ids": [5, 6, 7], "mask": [0, 1, 1]},
        {"id": "a", "sample": 2, "answer": "Robert", "ids": [5, 9, 4, 7], "mask": [0, 1, 0, 1]},
        {"id": "d", "sample": 0, "answer": "bob", "ids": [2, 6, 7], "mask": [0, 1, 1]},
    ]


def test_examples_in_a_file(sampled, tmp_path):
    told = write_examples(tmp_path / "eval", "nq.rejection", sampled)
    assert told == {
        "examples": 3, "repeated_examples": 1,
        "examples_by_question": {"a": 2, "b": 0, "c": 0, "d": 1},
    }  # fmt: skip
    text = (tmp_path / "eval" / "nq.rejection.examples.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == examples_of(sampled)
    assert not list(tmp_path.rglob("*.tmp"))


def test_none_is_right(sampled, tmp_path):
    told = write_examples(tmp_path, "x", sampled[4:6])
    assert (told["examples"], (tmp_path / "x.examples.jsonl").read_text()) == (0, "")
