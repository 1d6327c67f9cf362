"""How a trace answers a question: which queries, in which order, and what is thought between.

A planner looks at what searches would show before it decides, so every plan is one that works with
this search engine. It is a generator: it yields the queries that it wants to see the results of,
so that those of many questions are searched together.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.imitation.asked import VARIANTS, Asked
from sr1_jax.imitation.evidence import Evidence, first_words
from sr1_jax.imitation.shown import Doc, Shown
from sr1_jax.imitation.thoughts import Thoughts
from sr1_jax.imitation.wording import (
    as_key,
    bare_title,
    names,
    names_in,
    with_key_words,
)
from sr1_jax.rewards import exact_match

KINDS = ("one_search", "search_again", "chain", "compare", "yes_no", "gave_up")

# Names of the first passages that are tried as the second hop, where no title is known.
_BRIDGES = 6
# First queries from which a chain is tried.
_STARTS = 3


class Step(NamedTuple):
    """A search of a trace: the thought before it, and the query."""

    thought: str
    query: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A trace before it is played.

    Attributes:
        kind: one of `KINDS`.
        steps: its searches.
        thought: before the answer.
        answer: a golden one, as it stands in a passage where it stands in one.
        in_passage: whether it does.
    """

    kind: str
    steps: tuple[Step, ...]
    thought: str
    answer: str
    in_passage: bool


class LeftOut(NamedTuple):
    """Why a question gets no trace."""

    reason: str


class Options(NamedTuple):
    """What plans are made.

    Attributes:
        budget: most searches.
        variants: of first queries, some of `VARIANTS`.
        chain: share of the questions that name several pages and that one search answers which
            still look up page by page.
        again: share of the questions with queries that find the answer and others that do not which
            first show one that does not.
        thoughts: their wordings, a key of `thoughts.WORDINGS`.
    """

    budget: int
    variants: tuple[str, ...] = VARIANTS
    chain: float = 0.5
    again: float = 0.15
    thoughts: str = "varied"


# Yields queries; is sent what each shows.
Planning = Generator[Sequence[str], Mapping[str, Shown], Plan | LeftOut]


class Walk(NamedTuple):
    """A way through pages.

    Attributes:
        steps: its searches.
        shown: what each has shown.
        docs: where each page was shown first.
    """

    steps: list[Step]
    shown: list[Shown]
    docs: dict[str, Doc]


class Planner:
    """Plans the trace of one question.

    Args:
        question: to be answered.
        options: see `Options`.
        rng: of the trace.
    """

    def __init__(self, question: Question, options: Options, rng: random.Random):
        self.asked = Asked(question)
        self._options, self._rng = options, rng
        self._thoughts = Thoughts(question.question, rng, options.thoughts)

    def plan(self) -> Planning:
        """The plan; every draw is made in a fixed order."""
        asked = self.asked
        wants_chain, wants_again = self._rng.random(), self._rng.random()
        firsts = asked.first_queries(self._options.variants)
        seen = yield list(firsts.values())
        if not asked.findable:
            return (yield from self._comparison(firsts, seen))
        queries = self._shuffled(dict.fromkeys(firsts.values()))
        hits = [query for query in queries if asked.evidence(seen[query])]
        misses = [query for query in queries if not asked.is_answered_in(seen[query])]
        if not hits or wants_chain < self._options.chain:
            chain = yield from self._chain(firsts, queries, seen)
            if chain is not None:
                return chain
        if hits:
            again = misses and self._options.budget > 1 and wants_again < self._options.again
            steps = [misses[0], hits[0]] if again else [hits[0]]
            return self._found(steps, firsts, seen[hits[0]])
        if not asked.titles and self._options.budget > 1:
            bridged = yield from self._bridge(firsts, misses, seen)
            if bridged is not None:
                return bridged
        # Other words that bring back the same passages are no further attempt.
        fresh = {tuple(p.id for p in seen[query].passages): query for query in reversed(misses)}
        return self._gave_up([query for query in misses if query in fresh.values()], firsts)

    def _shuffled(self, items) -> list:
        items = list(items)
        self._rng.shuffle(items)
        return items

    def _first_step(self, query: str, firsts: Mapping[str, str]) -> Step:
        name = query if query == firsts.get("title") else None
        return Step(self._thoughts.seek(query, name), query)

    def _found(self, queries: Sequence[str], firsts: Mapping[str, str], last: Shown) -> Plan:
        steps = [self._first_step(queries[0], firsts)]
        steps += [Step(self._thoughts.again(query), query) for query in queries[1:]]
        kind = "one_search" if len(steps) == 1 else "search_again"
        return self._with_evidence(kind, steps, self.asked.evidence(last))

    def _with_evidence(self, kind: str, steps: Sequence[Step], evidence: Evidence) -> Plan:
        thought = self._thoughts.found(evidence.rank, evidence.title, evidence.quote)
        return Plan(kind, tuple(steps), thought, evidence.answer, True)

    def _gave_up(self, misses: Sequence[str], firsts: Mapping[str, str]) -> Plan | LeftOut:
        """As many searches as there may be, all in vain."""
        queries = misses[: self._options.budget]
        if not queries:
            return LeftOut("the answer stands only in a passage on something else")
        steps = [self._first_step(queries[0], firsts)]
        steps += [Step(self._thoughts.again(query), query) for query in queries[1:]]
        answer = self.asked.question.golden_answers[0].strip()
        return Plan("gave_up", tuple(steps), self._thoughts.gave_up(len(steps)), answer, False)

    def _chain(
        self, firsts: Mapping[str, str], queries: Sequence[str], seen: Mapping[str, Shown]
    ) -> Generator[Sequence[str], Mapping[str, Shown], Plan | None]:
        """Page by page, the answer on one of the last; None where that does not work out."""
        asked = self.asked
        if len(asked.titles) < 2:
            return None
        for start in queries[:_STARTS]:
            walk = yield from self._walk(start, firsts, seen[start])
            if walk is None or len(walk.steps) < 2:
                continue
            evidence = self._on_last_page(walk)
            if evidence is not None:
                return self._with_evidence("chain", walk.steps, evidence)
        return None

    def _on_last_page(self, walk: Walk) -> Evidence | None:
        """What the last search shows of the answer, on the page that was reached last if it is
        there."""
        for page in reversed(walk.docs):
            evidence = self.asked.evidence(walk.shown[-1], (page,))
            if evidence is not None and as_key(evidence.title) == as_key(page):
                return evidence
        return self.asked.evidence(walk.shown[-1])

    def _walk(
        self, start: str, firsts: Mapping[str, str], shown: Shown
    ) -> Generator[Sequence[str], Mapping[str, Shown], Walk | None]:
        """Searches until every page of `asked.pages` is shown; None where one cannot be reached.

        The next page is one that the question, or else a passage, names.
        """
        steps, path = [self._first_step(start, firsts)], [shown]
        left = list(self.asked.pages)
        docs: dict[str, Doc] = {}
        while True:
            docs |= {page: doc for page in left if (doc := path[-1].doc_of(page))}
            left = [page for page in left if page not in docs]
            if not left:
                return Walk(steps, path, docs)
            reached = self._next_page(left, path[-1], docs)
            if reached is None or len(steps) >= self._options.budget:
                return None
            page, thought = reached
            name = bare_title(page)
            # What led here need not be asked for again.
            behind = " ".join(bare_title(doc.title) for doc in docs.values())
            more = with_key_words(name, self.asked.text, without=behind)
            queries = self._shuffled(dict.fromkeys([name, more]))
            seen = yield queries
            asked_before = {as_key(step.query) for step in steps}
            good = [
                query
                for query in queries
                if seen[query].doc_of(page) and as_key(query) not in asked_before
            ]
            if not good:
                return None
            steps.append(Step(thought, good[0]))
            path.append(seen[good[0]])

    def _next_page(
        self, left: Sequence[str], shown: Shown, docs: Mapping[str, Doc]
    ) -> tuple[str, str] | None:
        """A page to look up, and the thought that leads to it; None where none is named."""
        last = [doc for doc in shown.docs if doc in docs.values()]
        for page in left:
            name = bare_title(page)
            if last and names(self.asked.text, name):
                return page, self._thoughts.other(last[0].rank, last[0].title, name)
            for doc in last:
                if names(doc.text, name):
                    return page, self._thoughts.follow(doc.rank, doc.title, name)
        return None

    def _comparison(self, firsts: Mapping[str, str], seen: Mapping[str, Shown]) -> Planning:
        """All pages that are compared, then the answer: yes, no, or one of their names."""
        if len(self.asked.pages) < 2:
            return LeftOut("what is compared is not known")
        starts = dict.fromkeys([*firsts.values(), *map(bare_title, self.asked.pages[:1])])
        unseen = [query for query in starts if query not in seen]
        seen = {**seen, **((yield unseen) if unseen else {})}
        for start in self._shuffled(starts):
            walk = yield from self._walk(start, firsts, seen[start])
            if walk is not None:
                return self._compared(walk)
        return LeftOut("a page that is compared was not found")

    def _compared(self, walk: Walk) -> Plan:
        asked = self.asked
        golden = asked.question.golden_answers
        spelt = [doc.title for doc in walk.docs.values()]
        known = [title for title in spelt if exact_match(title, golden)]
        answer = known[0] if known else golden[0].strip()
        beginnings = [first_words(doc.text) or doc.title for doc in walk.docs.values()]
        thought = self._thoughts.compared(beginnings, answer)
        kind = "yes_no" if asked.yes_no else "compare"
        return Plan(kind, tuple(walk.steps), thought, answer, bool(known))

    def _bridge(
        self, firsts: Mapping[str, str], misses: Sequence[str], seen: Mapping[str, Shown]
    ) -> Generator[Sequence[str], Mapping[str, Shown], Plan | None]:
        """A name in the first passages leads to the page with the answer.

        No titles are known here, so what counts as that page is one that has the name for its
        title, the answer in it, and words in common with the question.
        """
        if not misses:
            return None
        start, fresh = misses[0], {}
        for doc in seen[start].docs:
            for name in names_in(doc.text):
                if not names(self.asked.text, name) and not self.asked.tells(name):
                    fresh.setdefault(name, doc)
        bridges = list(fresh.items())[:_BRIDGES]
        queries = [
            with_key_words(name, self.asked.text, without=bare_title(doc.title))
            for name, doc in bridges
        ]
        shown = yield queries
        for (name, doc), query in zip(bridges, queries):
            evidence = self.asked.evidence(shown[query])
            if evidence and as_key(bare_title(evidence.title)) == as_key(name):
                follow = self._thoughts.follow(doc.rank, doc.title, name)
                steps = [self._first_step(start, firsts), Step(follow, query)]
                return self._with_evidence("chain", steps, evidence)
        return None
