"""Answers that are hard to compare: hand-worked scores, and an independent implementation."""

import unicodedata

import pytest
import squad
from hypothesis import given, settings
from hypothesis import strategies as st

from sr1_jax.rewards import METRICS, exact_match, f1_score, normalize_answer, substring_match

# (prediction, golden answers, EM, F1, cover-EM)
CASES = [
    # Articles: words of their own only, and after punctuation is gone.
    ("The Beatles", ["beatles"], 1, 1.0, 1),
    ("A Tale of Two Cities", ["tale of two cities"], 1, 1.0, 1),
    ("Theatre", ["atre"], 0, 0.0, 1),
    ("The The", ["The The"], 1, 0.0, 1),
    ("The The", ["a"], 1, 0.0, 1),
    ("Vitamin A", ["vitamin"], 1, 1.0, 1),
    ("a-ha", ["A-ha"], 1, 1.0, 1),
    ("aha", ["A-ha"], 1, 1.0, 1),
    ("a ha", ["A-ha"], 0, 0.0, 0),
    # Punctuation: ASCII alone is dropped, and joins what it stood between.
    ("U.S.A.", ["USA"], 1, 1.0, 1),
    ("U. S. A.", ["USA"], 0, 0.0, 0),
    ("rock-and-roll", ["rock and roll"], 0, 0.0, 0),
    ("$12", ["12"], 1, 1.0, 1),
    ("C++", ["C"], 1, 1.0, 1),
    ("Mary's", ["Mary’s"], 0, 0.0, 0),
    ('"Paris"', ["Paris"], 1, 1.0, 1),
    ("“Paris”", ["Paris"], 0, 0.0, 1),
    ("Paris…", ["Paris"], 0, 0.0, 1),
    ("the—end", ["—end"], 1, 1.0, 1),
    # Numbers are strings.
    ("1,000", ["1000"], 1, 1.0, 1),
    ("1000.0", ["1000"], 0, 0.0, 1),
    ("10000", ["1000"], 0, 0.0, 1),
    ("3.5", ["35"], 1, 1.0, 1),
    ("-5", ["5"], 1, 1.0, 1),
    ("two", ["2"], 0, 0.0, 0),
    ("20 March 851", ["March 20, 851"], 0, 1.0, 0),
    ("x²", ["x2"], 0, 0.0, 0),
    # Unicode: neither folded nor composed.
    ("Ｐａｒｉｓ", ["Paris"], 0, 0.0, 0),
    ("ＰＡＲＩＳ", ["ｐａｒｉｓ"], 1, 1.0, 1),
    ("Beyonce", ["Beyoncé"], 0, 0.0, 0),
    (unicodedata.normalize("NFD", "Beyoncé"), ["Beyoncé"], 0, 0.0, 0),
    (unicodedata.normalize("NFD", "Beyoncé"), ["Beyonce"], 0, 0.0, 1),
    # A combining mark is no letter, so the a that bears one stands alone, and goes.
    (unicodedata.normalize("NFD", "à Paris"), ["\u0300 Paris"], 1, 1.0, 1),
    ("İstanbul", ["istanbul"], 0, 0.0, 0),
    ("ISTANBUL", ["istanbul"], 1, 1.0, 1),
    ("ISPARTA", ["ısparta"], 0, 0.0, 0),
    ("Straße", ["STRASSE"], 0, 0.0, 0),
    ("STRAẞE", ["straße"], 1, 1.0, 1),
    # The last sigma of a word in capitals is another letter in lower case.
    ("ΟΔΟΣ", ["οδο\u03c2"], 1, 1.0, 1),
    ("ΟΔΟΣ", ["οδο\u03c3"], 0, 0.0, 0),
    ("東京", ["東京都"], 0, 0.0, 0),
    ("東京都", ["東京"], 0, 0.0, 1),
    ("new\u3000york", ["New York"], 1, 1.0, 1),
    ("new\u00a0york\u2003", ["New York"], 1, 1.0, 1),
    ("new\u200byork", ["New York"], 0, 0.0, 0),
    ("🙂", ["🙂"], 1, 1.0, 1),
    # Several golden answers: the best of them.
    ("politician", ["statesman", "Politician"], 1, 1.0, 1),
    ("red fish", ["blue fish", "red fish swims"], 0, 0.8, 0),
    ("October 1973", ["October", "1973"], 0, 2 / 3, 1),
    # Closed answers: all or nothing for F1.
    ("Yes.", ["yes"], 1, 1.0, 1),
    ("yes", ["no"], 0, 0.0, 0),
    ("yes, it is", ["yes"], 0, 0.0, 1),
    ("the yes", ["yes"], 1, 1.0, 1),
    ("yes yes", ["yes"], 0, 0.0, 1),
    ("know", ["no"], 0, 0.0, 1),
    ("noanswer", ["no answer"], 0, 0.0, 0),
    ("no", ["yes", "no way"], 0, 0.0, 0),
    # Nothing, or what comes to nothing.
    (None, ["Paris"], 0, 0.0, 0),
    ("", ["Paris"], 0, 0.0, 0),
    (" \n\t", ["Paris"], 0, 0.0, 0),
    ("", [""], 1, 0.0, 1),
    ("!?", ["..."], 1, 0.0, 1),
    ("Paris", ["..."], 0, 0.0, 0),
    ("the", ["an"], 1, 0.0, 1),
    # Repeated words count as often as they are there.
    ("Duran", ["Duran Duran"], 0, 2 / 3, 0),
    ("Duran Duran Duran", ["Duran Duran"], 0, 0.8, 1),
    # Tags in an answer are letters like any others once their signs are gone.
    ("<answer>Paris", ["answerParis"], 1, 1.0, 1),
]


@pytest.mark.parametrize(("prediction", "golden", "em", "f1", "cover"), CASES)
def test_hard_cases(prediction, golden, em, f1, cover):
    assert exact_match(prediction, golden) is bool(em)
    assert f1_score(prediction, golden) == pytest.approx(f1)
    assert substring_match(prediction, golden) is bool(cover)
    assert METRICS["cover_em"](prediction, golden) is METRICS["substring"](prediction, golden)


@pytest.mark.parametrize(("prediction", "golden", "em", "f1", "cover"), CASES)
def test_the_independent_implementation_agrees_with_the_table(prediction, golden, em, f1, cover):
    assert squad.exact(prediction, golden) is bool(em)
    assert squad.f1(prediction, golden) == pytest.approx(f1)
    assert squad.cover(prediction, golden) is bool(cover)


# Words that rules are about, joined by what may stand between words.
WORDS = st.sampled_from(
    "a an the A An THE yes no noanswer Yes. No! cat Cat's U.S. 1,000 ﬁ ß ẞ İ ı I é e\u0301 "
    "a\u0301 Ａ ² ٣ — “the” the’s _a_ -a- ς Σ 東京 <answer>".split()
)
GAPS = st.sampled_from(["", " ", "  ", "\n", "\u00a0", "\u3000", "-", "—", "\u200b", "\x1f", "."])
TEXTS = st.one_of(
    st.lists(st.tuples(WORDS, GAPS), max_size=5).map(lambda x: "".join(w + g for w, g in x)),
    st.text(max_size=12),
)


@settings(max_examples=500)
@given(TEXTS)
def test_normalisation_agrees(text):
    assert normalize_answer(text) == " ".join(squad.words_of(text))


@settings(max_examples=500)
@given(st.none() | TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_scores_agree_with_the_independent_implementation(prediction, golden):
    assert exact_match(prediction, golden) is squad.exact(prediction, golden)
    assert substring_match(prediction, golden) is squad.cover(prediction, golden)
    assert f1_score(prediction, golden) == pytest.approx(squad.f1(prediction, golden), abs=1e-12)


@settings(max_examples=200)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_what_scores_say_of_each_other(prediction, golden):
    if exact_match(prediction, golden):
        assert substring_match(prediction, golden)
        assert f1_score(prediction, golden) == 1.0 or not normalize_answer(prediction)
    if f1_score(prediction, golden) > 0:
        assert normalize_answer(prediction)
    assert 0.0 <= f1_score(prediction, golden) <= 1.0
