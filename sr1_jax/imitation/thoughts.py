"""What a trace thinks: short sentences, true of what was asked and shown."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from sr1_jax.imitation.wording import key_words

# What a question asks for, by the first of these words in it.
_SORTS = (
    (r"how (?:many|much|long|old|far|tall|big|often)", "number"),
    (r"(?:what|which) (?:year|date|month|day|century|decade)|when", "date"),
    (r"where|(?:what|which) (?:country|city|state|town|county|place|location)", "place"),
    (r"who|whose|whom", "name"),
)
_TOPIC_WORDS = 6


class Wordings(NamedTuple):
    """Templates of thoughts, of each kind some to draw from; `Thoughts` says when each is said."""

    seek: tuple[str, ...]
    seek_name: tuple[str, ...]
    again: tuple[str, ...]
    follow: tuple[str, ...]
    other: tuple[str, ...]
    found: tuple[str, ...]
    compared: tuple[str, ...]
    gave_up: tuple[str, ...]


_VARIED = Wordings(
    seek=(
        "I need a {sort}: {topic}.",
        "I am looking for a {sort} here: {topic}.",
        "First I should look up {topic} to get the {sort}.",
        "The {sort} has to be searched: {topic}.",
    ),
    seek_name=(
        "I should first read about {name}.",
        "To start with, I need to know about {name}.",
        "The question is about {name}, so I look that up.",
    ),
    again=(
        "These passages do not give it. I try other words: {topic}.",
        "That search missed. I will ask for {topic} instead.",
        "Nothing here answers the question, so I search again: {topic}.",
        "I do not see the {sort} in these passages. Next I try {topic}.",
    ),
    follow=(
        "Doc {rank} is about {title} and mentions {name}. Now I need to read about {name}.",
        "The passage on {title} leads to {name}, so {name} is next.",
        "From Doc {rank} I learn of {name}. I look that up.",
    ),
    other=(
        "Doc {rank} is about {title}. The other part is about {name}.",
        "I have read about {title}; now I need {name}.",
        "That covers {title}. I still have to look up {name}.",
    ),
    found=(
        'The passage on {title} says "{quote}".',
        'Doc {rank} has it: "{quote}".',
        'Doc {rank}, {title}, reads "{quote}".',
        'I find "{quote}" in Doc {rank}.',
    ),
    compared=(
        "I compare {quotes}. That gives {answer}.",
        "I have read {quotes}. So the answer is {answer}.",
        "From {quotes} it follows: {answer}.",
    ),
    gave_up=(
        "I have searched {times} and the passages do not say it. I answer what I believe.",
        "I searched {times} and nothing shows it, so I have to guess.",
        "What I searched {times} was not found. My best guess has to do.",
    ),
)
# One wording each that quotes nothing: what there is to learn is what to search and what to answer.
_SHORT = Wordings(
    seek=("I should look this up.",),
    seek_name=("I should look up {name}.",),
    again=("That does not say it. I search again.",),
    follow=("Doc {rank} names {name}. I look that up.",),
    other=("Next I look up {name}.",),
    found=("Doc {rank} has the answer.",),
    compared=("I compare the two.",),
    gave_up=("I did not find it, so I guess.",),
)
WORDINGS = {"varied": _VARIED, "short": _SHORT}


class Thoughts:
    """Wordings drawn for one trace.

    Args:
        question: that it answers.
        rng: of the trace.
        wordings: a key of `WORDINGS`.
    """

    def __init__(self, question: str, rng: random.Random, wordings: str):
        self._rng, self._wordings = rng, WORDINGS[wordings]
        self._sort = sort_asked_for(question)

    def seek(self, query: str, name: str | None) -> str:
        """Before a first query; `name`: the title that it looks up, if it does."""
        if name is not None:
            return self._say(self._wordings.seek_name, name=name)
        return self._say(self._wordings.seek, topic=topic(query))

    def again(self, query: str) -> str:
        """Before a query, after passages without the answer."""
        return self._say(self._wordings.again, topic=topic(query))

    def follow(self, rank: int, title: str, name: str) -> str:
        """Before looking up a name that a passage holds."""
        return self._say(self._wordings.follow, rank=rank, title=title, name=name)

    def other(self, rank: int, title: str, name: str) -> str:
        """Before looking up a name that the question holds, after another."""
        return self._say(self._wordings.other, rank=rank, title=title, name=name)

    def found(self, rank: int, title: str, quote: str) -> str:
        """Before an answer that a passage holds."""
        return self._say(self._wordings.found, rank=rank, title=title, quote=quote)

    def compared(self, beginnings: Sequence[str], answer: str) -> str:
        """Before an answer that compares passages, of which the first words are quoted."""
        quotes = " and ".join(f'"{words}"' for words in beginnings)
        return self._say(self._wordings.compared, quotes=quotes, answer=answer)

    def gave_up(self, searches: int) -> str:
        """Before an answer that no search has brought."""
        times = "once" if searches == 1 else f"{searches} times"
        return self._say(self._wordings.gave_up, times=times)

    def _say(self, wordings: Sequence[str], **fields: object) -> str:
        return self._rng.choice(wordings).format(sort=self._sort, **fields)


def sort_asked_for(question: str) -> str:
    """Whether a question asks for a number, a date, a place, a name, or any other fact."""
    places = (
        (match.start(), sort)
        for pattern, sort in _SORTS
        if (match := re.search(rf"\b(?:{pattern})\b", question, re.IGNORECASE))
    )
    return min(places, default=(0, "fact"))[1]


def topic(query: str) -> str:
    """The first key words of a query."""
    return " ".join(key_words(query)[:_TOPIC_WORDS]) or query
