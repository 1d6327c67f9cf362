"""The share of questions that gets traces."""

import json

import pytest

from sr1_jax.data.questions import Question, read_questions
from sr1_jax.imitation.split import distinct, is_taken, write_rest

TEXTS = [f"Who wrote book {i}?" for i in range(2000)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_shares_are_as_asked(share):
    count = sum(is_taken(text, share) for text in TEXTS)
    # Five standard deviations of a binomial.
    assert abs(count - share * 2000) < 5 * (2000 * share * (1 - share)) ** 0.5


def test_larger_shares_hold_smaller_ones():
    assert all(is_taken(text, 0.6) for text in TEXTS if is_taken(text, 0.3))
    assert all(is_taken(text, 1.0) for text in TEXTS)


def test_equal_words_are_on_one_side():
    assert is_taken(TEXTS[3], 0.5) == is_taken("  who wrote BOOK 3", 0.5)
    questions = [Question("a:1", "Who is it?", ("x",)), Question("b:1", "who is it", ("y",))]
    assert distinct(questions) == questions[:1]


def test_the_rest_is_every_other_line_with_all_its_keys(tmp_path):
    rows = [
        {"id": f"x:t:{i}", "question": text, "golden_answers": ["é"], "own": {"k": i}}
        for i, text in enumerate(TEXTS[:50])
    ]
    path, out = tmp_path / "q.jsonl", tmp_path / "rest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = [Question("a", TEXTS[3].upper(), ("x",)), Question("b", TEXTS[7], ("x",))]
    assert write_rest([path], taken, out) == 48
    left = [json.loads(line) for line in out.read_text().splitlines()]
    assert left == [row for row in rows if row["id"] not in ("x:t:3", "x:t:7")]
    assert len(read_questions(out)) == 48
