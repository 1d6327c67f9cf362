"""Answer scores against hand-worked examples and an independent loop."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr1_jax.rewards import (
    exact_match,
    f1_score,
    normalize_answer,
    outcome_reward,
    substring_match,
)

# Words that exercise every rule: articles, punctuation, case, closed answers, repeats.
WORDS = st.sampled_from(
    ["The", "a", "an", "yes", "No", "noanswer", "cat", "Cat", "dog", "U.S.", "-"]
)
TEXTS = st.lists(WORDS, max_size=5).map(" ".join)


def words_by_hand(text):
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def f1_by_hand(prediction, golden):
    """Precision and recall by crossing out matched words one at a time."""
    left, right = words_by_hand(prediction), words_by_hand(golden)
    if left != right and any(side in (["yes"], ["no"], ["noanswer"]) for side in (left, right)):
        return 0.0
    unmatched, common = list(right), 0
    for word in left:
        if word in unmatched:
            unmatched.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("U.S.", "us"),
        ("well-known", "wellknown"),
        ("an apple a day\n", "apple day"),
        ("Theodore Anand", "theodore anand"),  # articles only as whole words
        ("the-end", "theend"),  # punctuation goes first, so this is one word
        ("a.", ""),
        ("Zoë — 1,000", "zoë — 1000"),  # only ASCII punctuation is dropped
        ("", ""),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


def test_exact_match_takes_any_golden_answer():
    assert exact_match("The United States.", ["USA", "united states"]) is True
    assert exact_match("United", ["USA", "united states"]) is False
    assert exact_match("usa", "U.S.A.") is True


def test_one_string_is_one_answer_not_a_list_of_letters():
    assert exact_match("p", "paris") is False
    assert substring_match("p", "paris") is False
    assert f1_score("p", "p a r i s".replace(" ", "")) == 0.0


def test_substring_match_looks_for_golden_inside_prediction():
    assert substring_match("It was Paris, France.", ["London", "paris"]) is True
    assert substring_match("Par", ["Paris"]) is False


def test_blank_golden_answer_is_not_found_in_everything():
    assert substring_match("Led Zeppelin", ["The The"]) is False
    assert substring_match("the the", ["The The"]) is True
    assert exact_match("the the", ["The The"]) is True


@pytest.mark.parametrize(
    ("prediction", "golden", "expected"),
    [
        ("Barack Obama", ["Obama"], 2 / 3),  # precision 1/2, recall 1
        ("cat cat dog", ["cat dog dog"], 2 / 3),  # multiplicity: 2 common of 3 and 3
        ("red fish", ["blue fish", "red fish swims"], 0.8),  # the better of 1/2 and 4/5
        ("yes", ["yes it is"], 0.0),  # closed answer on the left
        ("well yes", ["Yes"], 0.0),  # closed answer on the right
        ("Yes.", ["yes"], 1.0),
        ("no", ["yes", "no"], 1.0),
        ("well yes", ["yes", "well yes sir"], 0.8),  # the special case is per golden answer
        ("dog", ["cat"], 0.0),
        ("", ["cat"], 0.0),
        ("the", ["a"], 0.0),
    ],
)
def test_f1_hand_numbers(prediction, golden, expected):
    assert f1_score(prediction, golden) == pytest.approx(expected)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_scores_agree_with_loops(prediction, golden):
    words = words_by_hand(prediction)
    assert normalize_answer(prediction) == " ".join(words)
    assert exact_match(prediction, golden) == any(words == words_by_hand(g) for g in golden)
    expected = max(f1_by_hand(prediction, g) for g in golden)
    assert f1_score(prediction, golden) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", [exact_match, substring_match, f1_score])
def test_no_prediction_scores_nothing(score):
    result = score(None, ["cat"])
    assert result == 0
    assert isinstance(result, float if score is f1_score else bool)


@pytest.mark.parametrize("score", [exact_match, substring_match, f1_score])
@pytest.mark.parametrize("prediction", ["cat", None])
def test_bad_golden_answers_are_refused(score, prediction):
    with pytest.raises(ValueError, match="golden_answers is empty"):
        score(prediction, [])
    with pytest.raises(ValueError, match=r"golden_answers\[1\] is 1912 of type int"):
        score(prediction, ["cat", 1912])
    with pytest.raises(ValueError, match="got None"):
        score(prediction, None)


@pytest.mark.parametrize(
    ("answer", "well_formed", "expected"),
    [("Paris", True, 1.0), ("Paris", False, 0.8), ("Rome", True, 0.2), ("Rome", False, 0.0)],
)
def test_format_reward_table(answer, well_formed, expected):
    reward = outcome_reward(answer, ["paris"], well_formed, format_weight=0.2)
    assert reward == pytest.approx(expected)
    without = outcome_reward(answer, ["paris"], well_formed)
    assert without == (1.0 if answer == "Paris" else 0.0)
    assert isinstance(reward, float) and isinstance(without, float)


def test_outcome_reward_uses_the_metric():
    arguments = ("Barack Obama", ["Obama"], True)
    assert outcome_reward(*arguments) == 0.0
    assert outcome_reward(*arguments, metric="substring") == 1.0
    assert outcome_reward(*arguments, metric="f1") == pytest.approx(2 / 3)
    assert outcome_reward(None, ["Obama"], False, metric="f1") == 0.0
    assert outcome_reward(None, ["Obama"], True, format_weight=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("well_formed", [True, False])
def test_graded_reward_never_falls_with_the_score(well_formed):
    golden = ["one two three four five six seven eight nine"]
    predictions = ["zero", "one zero", "one two", "one two three four", golden[0]]
    scores = [f1_score(p, golden) for p in predictions]
    assert scores == sorted(scores) and 0 < scores[1] < 0.3 < scores[3] < 1
    rewards = [
        outcome_reward(p, golden, well_formed, metric="f1", format_weight=0.3) for p in predictions
    ]
    assert rewards == sorted(rewards)
    if well_formed:
        assert rewards == pytest.approx([0.3, 0.3, scores[2], scores[3], 1.0])
    else:
        assert rewards == pytest.approx([0, 0, scores[2] - 0.3, scores[3] - 0.3, 0.7])


def test_outcome_reward_refuses_bad_settings():
    with pytest.raises(ValueError, match=r"'rouge'.*'em', 'f1', 'substring'"):
        outcome_reward("a", ["a"], True, metric="rouge")
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="format_weight"):
            outcome_reward("a", ["a"], True, format_weight=weight)
