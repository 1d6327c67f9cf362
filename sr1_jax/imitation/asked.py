"""A question as a writer of traces sees it: with its answers and, where known, its pages."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from sr1_jax.data.questions import Question
from sr1_jax.imitation.evidence import AnswerFinder, Evidence, find_evidence
from sr1_jax.imitation.shown import Shown
from sr1_jax.imitation.wording import (
    bare_title,
    names,
    names_in,
    with_key_words,
    without_function_words,
)
from sr1_jax.rewards.matching import normalize_answer

# First queries: the question, its key words, a title that it names, that and its other key words.
VARIANTS = ("question", "keywords", "title", "title_keywords")


class Asked:
    """A question, and what is known of it before any search.

    Args:
        question: with, perhaps, metadata.supporting_titles.
    """

    def __init__(self, question: Question):
        self.question = question
        self.text = question.question
        titles = question.metadata.get("supporting_titles") or ()
        self.titles = tuple(dict.fromkeys(titles))
        # An answer that the question itself names is chosen, not found.
        self.findable = [
            answer
            for answer in question.golden_answers
            if not names(self.text, answer) and normalize_answer(answer) not in ("yes", "no")
        ]
        self.finder = AnswerFinder(self.findable)

    def is_answered_in(self, shown: Shown) -> bool:
        """Whether the answer can be read anywhere in what is shown, by whatever chance."""
        return any(self.finder.find(f"{doc.title}\n{doc.text}") for doc in shown.docs)

    @property
    def yes_no(self) -> bool:
        """Whether the answer is yes or no."""
        return normalize_answer(self.question.golden_answers[0]) in ("yes", "no")

    @functools.cached_property
    def pages(self) -> tuple[str, ...]:
        """Titles to look up one by one: those that support the answer, but for that of the answer
        itself; where none are known and the answer lies in the question, the two names in that."""
        if self.titles:
            return tuple(title for title in self.titles if not self.tells(title))
        if self.findable:
            return ()
        found = names_in(self.text)
        return tuple(found) if len(found) == 2 else ()

    def tells(self, text: str) -> bool:
        """Whether a text holds the answer, which the question does not."""
        return any(names(text, answer) for answer in self.findable)

    def first_queries(self, variants: Sequence[str]) -> dict[str, str]:
        """Queries that somebody could write who knows the question alone, by variant.

        A title is used only where the question names it in full.
        """
        title = next((bare_title(t) for t in self.titles if names(self.text, bare_title(t))), None)
        queries = {
            "question": " ".join(self.text.split()),
            "keywords": without_function_words(self.text),
        }
        if title is not None:
            queries["title"] = title
            queries["title_keywords"] = with_key_words(title, self.text)
        return {name: queries[name] for name in variants if name in queries}

    def evidence(self, shown: Shown, titles: Sequence[str] | None = None) -> Evidence | None:
        """The passage that supports the answer, if it is shown; see `find_evidence`.

        Args:
            shown: by a search.
            titles: to prefer; by default those that are known to support the answer.
        """
        titles = self.titles if titles is None else titles
        return find_evidence(shown, self.finder, self.text, titles)
