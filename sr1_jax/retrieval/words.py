"""What BM25 takes for a word: the same for passages and queries, and the same as bm25s.

A text is made lower case and split into runs of two or more word characters, which is bm25s's
default pattern; stop words go; the rest is stemmed. The lists of stop words are bm25s's. They are
read from its file of lists and not by importing the library, which starts the JAX backend: on
several hosts nothing may do that before jax.distributed.initialize().
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import Stemmer

# bm25s's r"(?u)\b\w\w+\b" finds the same, as runs are matched whole from their first character.
find_words = re.compile(r"\w\w+").findall

# The names by which bm25s knows a list, and what the list is called there.
_LISTS = {
    "en": "EN", "english": "EN", "en_plus": "EN_PLUS", "english_plus": "EN_PLUS",
    "de": "GERMAN", "german": "GERMAN", "nl": "DUTCH", "dutch": "DUTCH",
    "fr": "FRENCH", "french": "FRENCH", "es": "SPANISH", "spanish": "SPANISH",
    "pt": "PORTUGUESE", "portuguese": "PORTUGUESE", "it": "ITALIAN", "italian": "ITALIAN",
    "ru": "RUSSIAN", "russian": "RUSSIAN", "sv": "SWEDISH", "swedish": "SWEDISH",
    "no": "NORWEGIAN", "norwegian": "NORWEGIAN", "zh": "CHINESE", "chinese": "CHINESE",
    "tr": "TURKISH", "turkish": "TURKISH", "ko": "KOREAN", "korean": "KOREAN",
    "da": "DANISH", "danish": "DANISH",
}  # fmt: skip


@lru_cache
def stop_words(name: str | None) -> frozenset[str]:
    """The words that a list of bm25s leaves out.

    Args:
        name: a language as bm25s names it ("en", "german", ...); None for no list.

    Raises:
        ValueError: there is no such list.
    """
    if name is None:
        return frozenset()
    if name not in _LISTS:
        raise ValueError(
            f"stopwords: {name} is no list of bm25s; choose None or one of {', '.join(_LISTS)}."
        )
    package = importlib.util.find_spec("bm25s")
    path = Path(package.origin).with_name("stopwords.py")
    spec = importlib.util.spec_from_file_location("bm25s_stopwords", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return frozenset(getattr(module, f"STOPWORDS_{_LISTS[name]}"))


def check_stemmer(name: str | None) -> None:
    """Refuses a stemmer that PyStemmer does not have.

    Raises:
        ValueError: naming those there are.
    """
    if name is not None and name not in Stemmer.algorithms():
        raise ValueError(
            f"no stemmer {name!r}; choose None or one of {', '.join(Stemmer.algorithms())}."
        )


class QueryWords:
    """Splits queries; safe in threads.

    Args:
        stemmer: a Snowball algorithm of PyStemmer, or None.
        stopwords: a list of bm25s, or None.
    """

    def __init__(self, stemmer: str | None, stopwords: str | None):
        check_stemmer(stemmer)
        self._stop_words = stop_words(stopwords)
        self._stemmer = stemmer
        self._own = threading.local()  # a Stemmer is not safe in threads

    def split(self, query: str) -> list[str]:
        """The stemmed words of a query in its order, with repetitions."""
        # A sampled query can hold half a surrogate pair, on which the stemmer would fail.
        text = query.encode("utf-8", "replace").decode("utf-8").lower()
        words = [word for word in find_words(text) if word not in self._stop_words]
        if self._stemmer is None:
            return words
        if not hasattr(self._own, "stemmer"):
            self._own.stemmer = Stemmer.Stemmer(self._stemmer)
        return self._own.stemmer.stemWords(words)


@cache
def english_words() -> QueryWords:
    """Stems without stop words, of English: what tells whether two texts share a word."""
    return QueryWords("english", "en")


class WordIds(dict):
    """Numbers the words of passages as they come: `ids[word]` is the number of the word's stem, or
    -1 for a stop word. Each word is stemmed once.

    Attributes:
        stems: by number.
    """

    def __init__(self, stemmer: str | None, stopwords: Iterable[str]):
        self._stem = (lambda word: word) if stemmer is None else Stemmer.Stemmer(stemmer).stemWord
        self._number_of: dict[str, int] = {}
        self.stems: list[str] = []
        super().__init__(dict.fromkeys(stopwords, -1))

    def __missing__(self, word: str) -> int:
        stem = self._stem(word)
        number = self._number_of.setdefault(stem, len(self.stems))
        if number == len(self.stems):
            self.stems.append(stem)
        self[word] = number
        return number
