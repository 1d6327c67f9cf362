"""Where answers stand, compared with a search that tries every part of a text."""

import random
import string

import pytest

from sr1_jax.imitation.evidence import AnswerFinder, first_words, quote_around
from sr1_jax.rewards import exact_match


def holds_by_brute_force(text, golden):
    """Whether any part of the text, cut between words, equals the answer as exact match has it."""
    cuts = [
        i for i in range(len(text) + 1)
        if not (0 < i < len(text) and text[i - 1].isalnum() and text[i].isalnum())
    ]  # fmt: skip
    return any(exact_match(text[a:b], [golden]) for a in cuts for b in cuts if a < b)


@pytest.mark.parametrize(
    ("text", "golden", "found"),
    [
        ("It was opened in 1874.", "1874", "1874"),
        ("It was opened in 18741.", "1874", None),
        ("the U.S. army", "US", "U.S"),
        ("born in the Tarnow  Hill", "Tarnow Hill", "Tarnow  Hill"),
        ("a second-hand car", "secondhand", "second-hand"),
        ("Bank of the West", "bank of West", "Bank of the West"),
        ("season 2001–2002", "2001–2002", "2001–2002"),
        ("see Rice (novel) there", "rice (novel)", "Rice (novel)"),
        ("“Killer Within” was", '"Killer Within"', "Killer Within"),
        ("nothing of it", "???", None),
    ],
)
def test_find(text, golden, found):
    match = AnswerFinder([golden]).find(text)
    assert (match and match[0]) == found
    if match:
        assert exact_match(match[0], [golden])


def test_find_agrees_with_brute_force():
    rng = random.Random(0)
    words = ["the", "a", "ab", "b", "a.b", "b-", "(ab", "an"]
    hits = 0
    for _ in range(400):
        text = " ".join(rng.choice(words) for _ in range(5))
        golden = " ".join(rng.choice(words) for _ in range(rng.randint(1, 2)))
        if not golden.translate(str.maketrans("", "", string.punctuation)).strip():
            continue
        if not any(w not in ("the", "a", "an") for w in golden.split()):
            continue
        found = AnswerFinder([golden]).find(text) is not None
        assert found == holds_by_brute_force(text, golden), (text, golden)
        hits += found
    assert 40 < hits < 360


def test_the_first_golden_answer_comes_first():
    finder = AnswerFinder(["July 1969", "July"])
    assert finder.find("In July there, then July 1969.")[0] == "July 1969"


def test_the_best_place_shares_words_with_the_question():
    text = "In 1874 it rained. The bridge was opened in 1874 by her. In 1874 all was well."
    match = AnswerFinder(["1874"]).find_best(text, {"bridg", "open"})
    assert match.start() == text.index("1874 by")


def test_quotes_are_verbatim_and_stay_in_the_sentence():
    text = "Nobody knew. It was one of the bridges that was opened in 1874 by Marta Quill. She won."
    start = text.index("1874")
    quote = quote_around(text, start, start + 4)
    assert quote == "the bridges that was opened in 1874 by Marta Quill"
    start = text.index("Nobody")
    assert quote_around(text, start, start + 6) == "Nobody knew"
    assert quote_around("1874", 0, 4) == "1874"


def test_first_words():
    assert first_words("One two three, four.") == "One two three, four"
    assert first_words("1 2 3 4 5 6 7 8 9, 10 11") == "1 2 3 4 5 6 7 8 9"
    assert first_words("") == ""
