"""Words and stop words against those of bm25s."""

import bm25s
import pytest
import Stemmer
from bm25s.tokenization import _infer_stopwords
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.retrieval.words import _LISTS, QueryWords, WordIds, find_words, stop_words


@pytest.mark.parametrize("name", [*_LISTS, None])
def test_stop_words_are_those_of_bm25s(name):
    assert stop_words(name) == frozenset(_infer_stopwords(name))


def test_lists_that_are_not_there():
    with pytest.raises(ValueError, match="stopwords: klingon is no list of bm25s; choose None or"):
        stop_words("klingon")


@given(st.text(), st.sampled_from(["english", "german", None]), st.sampled_from(["en", "de", None]))
def test_words_of_a_text_are_those_of_bm25s(text, stemmer, stopwords):
    text = f"{text} The runners' co-op ran 3 x 42 miles in naïve Straße_7 İstanbul {text}"
    expected = bm25s.tokenize(
        [text],
        stopwords=stopwords or [],
        stemmer=Stemmer.Stemmer(stemmer) if stemmer else None,
        return_ids=False,
        show_progress=False,
    )[0]
    assert QueryWords(stemmer, stopwords).split(text) == expected
    ids = WordIds(stemmer, stop_words(stopwords))
    numbers = [ids[word] for word in find_words(text.lower())]
    assert [ids.stems[number] for number in numbers if number >= 0] == expected


def test_half_a_surrogate_pair():
    assert QueryWords("english", "en").split("cats \ud800 dogs") == ["cat", "dog"]
