"""Where an answer stands in what a search showed, and the words around it."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import NamedTuple

from sr1_jax.imitation.shown import Shown
from sr1_jax.imitation.wording import as_key, stems
from sr1_jax.rewards.matching import exact_match, normalize_answer

_PUNCTUATION = f"[{re.escape(string.punctuation)}]*"
_BETWEEN = rf"{_PUNCTUATION}\s+(?:(?:a|an|the)\s+)*{_PUNCTUATION}"
# A passage of a title that nobody vouches for has to share so many words with the question.
_SHARED_WORDS = 2
_WORDS_BEFORE, _WORDS_AFTER = 6, 4
_FIRST_WORDS = 9


class Evidence(NamedTuple):
    """A passage that holds the answer.

    Attributes:
        rank: of the passage, from 1, as the policy sees it.
        title: of it.
        answer: as it stands there.
        quote: words of the passage around it; the title, where the answer stands there alone.
    """

    rank: int
    title: str
    answer: str
    quote: str


class AnswerFinder:
    """Finds golden answers in texts, word for word, as exact match compares them.

    Args:
        golden_answers: in the order in which they are wanted.
    """

    def __init__(self, golden_answers: Iterable[str]):
        self._patterns = [pattern for answer in golden_answers for pattern in _patterns(answer)]

    def find(self, text: str) -> re.Match | None:
        """The first place of the first golden answer that a text holds."""
        return next(self._places(text), None)

    def find_best(self, text: str, asked: Set[str]) -> re.Match | None:
        """Of the places of the first golden answer that a text holds, the first whose sentence has
        most words in common with the question.

        Args:
            text: of a passage.
            asked: stems of the question.
        """
        places = list(self._places(text))
        if not places:
            return None
        same = [place for place in places if place[0].lower() == places[0][0].lower()]
        return max(same, key=lambda place: len(asked & _sentence_stems(text, *place.span())))

    def _places(self, text: str) -> Iterator[re.Match]:
        for golden, pattern in self._patterns:
            for match in pattern.finditer(text):
                if exact_match(match[0], [golden]):
                    yield match


def _patterns(golden: str) -> Iterator[tuple[str, re.Pattern]]:
    """The answer letter by letter, then as `normalize_answer` reads it."""
    yield golden, _as_words(re.escape(golden.strip()))
    words = normalize_answer(golden).split()
    if words:
        loose = (_PUNCTUATION.join(map(re.escape, word)) for word in words)
        yield golden, _as_words(_BETWEEN.join(loose))


def _as_words(pattern: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE)


def find_evidence(
    shown: Shown, finder: AnswerFinder, question: str, titles: Sequence[str]
) -> Evidence | None:
    """The passage that best supports the answer: one of a supporting title, or else the first that
    has at least two words in common with the question beside the answer.

    Args:
        shown: by a search; only what was not cut off counts.
        finder: of the answer.
        question: its text.
        titles: of the pages that are known to support the answer.
    """
    if not any(finder.find(p.text) or finder.find(p.title) for p in shown.passages):
        return None  # before anything is rendered
    wanted, asked = set(map(as_key, titles)), set(stems(question))
    others = []
    for rank, title, text in shown.docs:
        match = finder.find_best(text, asked)
        place = match or finder.find(title)
        if place is None:
            continue
        quote = quote_around(text, *match.span()) if match else title
        evidence = Evidence(rank, title, place[0], quote)
        if as_key(title) in wanted:
            return evidence
        shared = asked & set(stems(f"{title} {text}")) - set(stems(place[0]))
        if len(shared) >= min(_SHARED_WORDS, len(asked)):
            others.append(evidence)
    return others[0] if others else None


def quote_around(text: str, start: int, end: int) -> str:
    """A part of a text, and a few words of its sentence before and after it."""
    before, after = _sentence(text, start, end)
    first = _last_words(before, _WORDS_BEFORE)
    last = _first_words(after, _WORDS_AFTER)
    return (first + text[start:end] + last).strip().rstrip(".,;:")


def _sentence(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and after a part of a text in the same sentence, roughly."""
    before = re.split(r"[.!?]\s+(?=[A-Z])", text[:start])[-1]
    after = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text[end:])[0]
    return before, after


def _sentence_stems(text: str, start: int, end: int) -> set[str]:
    return set(stems(" ".join(_sentence(text, start, end))))


def first_words(text: str) -> str:
    """The beginning of a text, verbatim."""
    return _first_words(text, _FIRST_WORDS - 1).strip().rstrip(".,;:")


def _first_words(text: str, count: int) -> str:
    return re.match(rf"\S*(?:\s+\S+){{0,{count}}}", text)[0]


def _last_words(text: str, count: int) -> str:
    return _first_words(text[::-1], count)[::-1]
