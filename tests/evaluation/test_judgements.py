"""Verdicts that are kept in a file."""

import pytest

from sr1_jax.evaluation.judgements import Judgements
from sr1_jax.rewards.judge import Item


class Judge:
    """Says yes to what ends in an exclamation mark; fails from some call on."""

    def __init__(self, fails_from=99):
        self.asked, self._fails_from = [], fails_from

    def scores(self, items):
        if len(self.asked) >= self._fails_from:
            raise RuntimeError("no verdict")
        self.asked.append(list(items))
        return [item.prediction.endswith("!") for item in items]


def items(*predictions, golden=("x",)):
    return [Item("Who?", prediction, golden) for prediction in predictions]


def test_no_pair_is_judged_twice(tmp_path):
    path, judge = tmp_path / "eval" / "judgements.jsonl", Judge()
    asked = items("a!", "b", None, "a!", " ", "é\ud83d!")
    assert Judgements(path, "m").scores(judge, asked) == [True, False, False, True, False, True]
    assert judge.asked == [items("a!", "b", "é\ud83d!")]
    again = Judge()
    kept = Judgements(path, "m")
    assert kept.scores(again, [*asked, *items("c!")]) == [
        True, False, False, True, False, True, True,
    ]  # fmt: skip
    assert again.asked == [items("c!")]
    assert kept.scores(again, items("c!")) == [True] and len(again.asked) == 1


def test_what_a_verdict_depends_on(tmp_path):
    path = tmp_path / "judgements.jsonl"
    Judgements(path, "m").scores(Judge(), items("a!"))
    for model, asked in (
        ("other", items("a!")),
        ("m", items("a!", golden=("y",))),
        ("m", [Item("Where?", "a!", ("x",))]),
    ):
        judge = Judge()
        Judgements(path, model).scores(judge, asked)
        assert judge.asked == [asked]


def test_a_judge_that_fails_loses_no_verdict(tmp_path):
    path, many = tmp_path / "judgements.jsonl", items(*(f"{n}!" for n in range(150)))
    with pytest.raises(RuntimeError, match="no verdict"):
        Judgements(path, "m").scores(Judge(fails_from=2), many)
    path.write_bytes(path.read_bytes()[:-30])  # and the last one is cut short
    judge = Judge()
    assert Judgements(path, "m").scores(judge, many) == [True] * 150
    assert [len(batch) for batch in judge.asked] == [23]
    assert Judgements(path, "m").scores(Judge(fails_from=0), many) == [True] * 150


def test_a_judge_that_miscounts(tmp_path):
    judge = Judge()
    judge.scores = lambda items: []
    with pytest.raises(RuntimeError, match="The judge gave 0 verdicts for 1"):
        Judgements(tmp_path / "j.jsonl", "m").scores(judge, items("a"))
