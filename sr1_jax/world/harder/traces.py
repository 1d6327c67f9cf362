"""Scripted traces of the harder world: they teach the prompts of all methods, and reading.

What passages say is read by one rule (`TraceWriter.conclude`): of the passages of the right subject
and relation, one that is no rumour and not outdated counts; without one, nothing is known. Every
thought that follows passages says what was concluded: "born Nelvan Corsik: Bel Hill".

- What one fact answers, or shows to be unknown, is searched and answered as concluded. Some first
  search for the wrong thing, some check a look-alike once more.
- Two and three hops are given up half-way: the first fact, or what a second or third search
  brought, is passed off as the answer; never the right one, even where it was found and read.
- Comparisons: one fact, or two, are searched; the answer is a guess, or one of the facts.
- Prompts with passages: one fact, or a comparison, right where both facts were found. This is the
  one place that shows how to compare.
- Thoughts that retrieve, and observations that a reader wrote: one fact, or two hops given up after
  the first.

`lazy` adds a bad habit: searches are given up before they began.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from sr1_jax.data.questions import Question
from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.world.harder.facts import FACT, HARDER_RELATIONS, NOT_KNOWN, HarderWorld
from sr1_jax.world.harder.questions import options
from sr1_jax.world.traces import Note, Trace, query_of, think

# Numbers of passages that traces show beside rollout.passages; most in those of one search alone.
_FEW, _MANY = (1, 2, 3), (1, 2, 3, 5)
Step = tuple[str, str]  # relation, entity


@dataclasses.dataclass(frozen=True)
class HarderMix:
    """Shares of what traces show; each between 0 and 1.

    Attributes:
        direct: answered at once, from memory.
        cot: answered after a thought, from memory.
        rag: prompts that carry passages for one fact.
        rag_comparison: prompts that carry passages for a comparison.
        ircot: the same, in which thoughts retrieve.
        search_o1: searches whose passages a reader read.
        reader: readings for such a search.
        misled, unanswerable, two_hop, three_hop, comparison: questions of a kind among those of
            the search prompt; the rest is of one hop.
        retry: searches of one fact whose first query is wrong.
        wander: searches of one fact followed by one more, useless one.
        explore: searches of several facts that go on after the first, at random.
        lazy: search prompts given up at once, without a search.
        alone: traces whose searches bring back one passage, whatever rollout.passages says.
        vary: of the others, those with another number of passages than rollout.passages.
    """

    direct: float = 0.04
    cot: float = 0.04
    rag: float = 0.08
    rag_comparison: float = 0.08
    ircot: float = 0.08
    search_o1: float = 0.08
    reader: float = 0.1
    misled: float = 0.2
    unanswerable: float = 0.15
    two_hop: float = 0.2
    three_hop: float = 0.1
    comparison: float = 0.1
    retry: float = 0.2
    wander: float = 0.15
    explore: float = 0.6
    lazy: float = 0.0
    alone: float = 0.0
    vary: float = 0.3


def said(relation: str, entity: str, found: str | None) -> str:
    """What was concluded, as thoughts and readers write it."""
    return f"{query_of(relation, entity)}: {found or 'nothing'}"


def need(relation: str) -> str:
    return f"need {HARDER_RELATIONS[relation].keyword}"


def answer(thought: str, text: str) -> str:
    return f"{think(thought)}{bare_answer(text)}"


def bare_answer(text: str) -> str:
    """With spaces inside the tags, so that a name has the tokens it has in text."""
    return f"<answer> {text} </answer>"


class HarderTraceWriter:
    """Writes traces with the real retriever's passages in them.

    Args:
        world: in which all is true.
        retriever: over its passages.
        passages: rollout.passages.
        pools: training questions by kind.
    """

    def __init__(
        self,
        world: HarderWorld,
        retriever: Retriever,
        passages: int,
        pools: Mapping[str, Sequence[Question]],
    ):
        self.world = world
        self._statements = {statement.passage: statement for statement in world.statements}
        self._passages = passages
        self._retriever = retriever
        self._pools = pools
        self._found: dict[str, list[Passage]] = {}
        self._kinds: dict[str, str] = {}  # of every entity
        for statement in world.statements:
            relation = HARDER_RELATIONS[statement.relation]
            self._kinds[statement.subject] = relation.subject
            if relation.object:
                self._kinds[statement.object] = relation.object
        for subject, name, _ in world.absent:  # all that is known of one may be nothing
            self._kinds[subject] = HARDER_RELATIONS[name].subject

    def write(self, mix: HarderMix, count: int, seed: int) -> list[Trace]:
        """`count` traces."""
        rng = random.Random(f"harder traces {seed}")
        return [self._trace(mix, rng) for _ in range(count)]

    def conclude(self, passages: Sequence[Passage], relation: str, entity: str) -> str | None:
        """The object that passages state as a fact, or None: the rule of a careful reader."""
        for passage in passages:
            statement = self._statements[passage.text]
            about = (statement.relation, statement.subject)
            if statement.kind == FACT and about == (relation, entity):
                return statement.object
        return None

    def _trace(self, mix: HarderMix, rng: random.Random) -> Trace:
        modes: dict[str, Callable[[HarderMix, random.Random], Trace]] = {
            "direct": self._direct,
            "cot": self._cot,
            "rag": self._rag,
            "rag_comparison": self._rag_comparison,
            "ircot": self._ircot,
            "search_o1": self._search_o1,
            "reader": self._reader,
        }
        drawn = rng.random()
        for mode, write in modes.items():
            drawn -= getattr(mix, mode)
            if drawn < 0:
                return write(mix, rng)
        return self._search_trace(mix, rng)

    # Modes without a search of the policy's own

    def _direct(self, mix: HarderMix, rng: random.Random) -> Trace:
        question = self._single(mix, rng)
        final = bare_answer(question.golden_answers[0])
        return Trace(question, "direct", (final,), frozenset([0]))

    def _cot(self, mix: HarderMix, rng: random.Random) -> Trace:
        question = self._single(mix, rng)
        subject, relation, found = question.metadata["chain"][0]
        final = answer(said(relation, subject, found), found or NOT_KNOWN)
        return Trace(question, "cot", (final,), frozenset([0]))

    def _rag(self, mix: HarderMix, rng: random.Random) -> Trace:
        question = self._single(mix, rng)
        subject, relation, _ = question.metadata["chain"][0]
        passages = self._search(question.question, self._count(mix, rng, _MANY))
        found = self.conclude(passages, relation, subject)
        return Trace(question, "rag", (passages, self._answer(relation, subject, found)))

    def _rag_comparison(self, mix: HarderMix, rng: random.Random) -> Trace:
        """Right where both facts were found, else a guess."""
        question = self._drawn("comparison", rng)
        count = max(2, self._count(mix, rng, _MANY))
        passages = self._search(question.question, count)
        facts = [(relation, subject) for subject, relation, _ in question.metadata["chain"]]
        found = [self.conclude(passages, *fact) for fact in facts]
        thought = "; ".join(said(*fact, what) for fact, what in zip(facts, found))
        if None in found:
            guess = answer(thought, rng.choice(options(question)))
            return Trace(question, "rag", (passages, guess), frozenset([1]), guessed=True)
        return Trace(question, "rag", (passages, answer(thought, question.golden_answers[0])))

    def _reader(self, mix: HarderMix, rng: random.Random) -> Trace:
        """A reading for a query of the kind that searches make, good or not so good."""
        question = self._kind_of_search(mix, rng)
        subject, relation, _ = rng.choice(question.metadata["chain"])
        if rng.random() < mix.retry:
            relation = self._other_relation(relation, rng)
        query = query_of(relation, subject)
        passages = self._search(query, self._count(mix, rng, _MANY))
        written = said(relation, subject, self.conclude(passages, relation, subject))
        return Trace(question, "reader", (passages, bare_answer(written)), query=query)

    # Modes that search

    def _ircot(self, mix: HarderMix, rng: random.Random) -> Trace:
        """A thought says what the passages of the prompt say, and retrieves; then the answer."""
        question = self._single(mix, rng, also_two_hops=True)
        subject, relation, _ = question.metadata["chain"][0]
        count = self._count(mix, rng, _FEW)
        passages = self._search(question.question, count)
        thought = said(relation, subject, self.conclude(passages, relation, subject))
        more = self._search(thought, count)
        found = self.conclude([*passages, *more], relation, subject)
        segments = (passages, think(thought), more, bare_answer(found or NOT_KNOWN))
        return Trace(question, "ircot", segments)

    def _search_o1(self, mix: HarderMix, rng: random.Random) -> Trace:
        question = self._single(mix, rng, also_two_hops=True)
        subject, relation, _ = question.metadata["chain"][0]
        passages = self._search(query_of(relation, subject), self._passages)
        found = self.conclude(passages, relation, subject)
        note = Note(said(relation, subject, found))
        segments = (self._query(relation, subject), note, self._answer(relation, subject, found))
        return Trace(question, "search_o1", segments)

    def _search_trace(self, mix: HarderMix, rng: random.Random) -> Trace:
        question = self._kind_of_search(mix, rng)
        if rng.random() < mix.lazy:
            return Trace(question, "search", (answer("no idea", "unknown"),))
        kind = question.metadata["kind"]
        if len(question.metadata["chain"]) == 1:
            return self._one_fact(question, mix, rng)
        write = self._compare if kind == "comparison" else self._hops
        return write(question, mix, rng)

    def _one_fact(self, question: Question, mix: HarderMix, rng: random.Random) -> Trace:
        subject, relation, _ = question.metadata["chain"][0]
        steps = [(relation, subject)]
        arbitrary = frozenset()
        habit = rng.random()
        if habit < mix.retry:
            other = self._other_relation(relation, rng)
            steps.insert(0, rng.choice([(other, subject), self._look_alike(steps[0], rng)]))
            arbitrary = frozenset([0])
        elif habit < mix.retry + mix.wander:
            steps.append(self._look_alike(steps[0], rng))
            arbitrary = frozenset([2])
        count = self._count(mix, rng, _MANY if len(steps) == 1 else _FEW)
        segments, found = self._searched(steps, count)
        known = found[steps.index((relation, subject))]
        return Trace(
            question, "search", (*segments, self._answer(relation, subject, known)), arbitrary
        )

    def _hops(self, question: Question, mix: HarderMix, rng: random.Random) -> Trace:
        """The first hop is searched, then perhaps more; the answer is always wrong."""
        chain = question.metadata["chain"]
        gold = question.golden_answers[0]
        count = self._count(mix, rng, _FEW)
        steps: list[Step] = [(chain[0][1], chain[0][0])]
        if rng.random() < mix.explore:
            for _, relation, _ in chain[1:]:
                previous, entity = steps[-1]
                bridge = self.conclude(self._search(query_of(previous, entity), count), *steps[-1])
                nexts = self._relations_of(bridge) if bridge else ()
                if not nexts:
                    break  # nothing is known, or it is a year, a country
                if rng.random() < 0.1:
                    bridge = self._look_alike(steps[-1], rng)[1]
                if relation not in nexts or rng.random() < 0.4:
                    relation = rng.choice(nexts)
                steps.append((relation, bridge))
        segments, found = self._searched(steps, count)
        shown = [number for number, what in enumerate(found) if what != gold]
        last = len(steps) - 1
        number = last if last in shown and rng.random() < 0.7 else rng.choice(shown)
        final = self._answer(*steps[number], found[number])
        if last not in shown and rng.random() < 0.5:
            # Read, and not made use of.
            final = answer(said(*steps[last], gold), found[number] or NOT_KNOWN)
        # All but the first query, and so the answer too if there is more than one.
        arbitrary = frozenset(range(2, 2 * len(steps) + (len(steps) > 1), 2))
        return Trace(question, "search", (*segments, final), arbitrary)

    def _compare(self, question: Question, mix: HarderMix, rng: random.Random) -> Trace:
        """One fact and a guess; or both, and a guess or a fact that is no answer at all."""
        chain = question.metadata["chain"]
        relation = chain[0][1]
        steps: list[Step] = [(relation, chain[0][0])]
        if rng.random() < mix.explore:
            other = (relation, chain[1][0])
            steps.append(other if rng.random() < 0.85 else self._look_alike(other, rng))
        segments, found = self._searched(steps, self._count(mix, rng, _FEW))
        thought = "; ".join(said(*step, what) for step, what in zip(steps, found))
        final = rng.choice(options(question))
        guessed = len(steps) == 1 or rng.random() < 0.6
        if not guessed:
            final = rng.choice(found) or NOT_KNOWN
        last = len(segments)
        arbitrary = frozenset([last] if len(steps) == 1 else [2, last])
        return Trace(
            question, "search", (*segments, answer(thought, final)), arbitrary, guessed=guessed
        )

    # Parts

    def _searched(self, steps: Sequence[Step], count: int) -> tuple[list, list[str | None]]:
        """Segments up to the last passages, and what was concluded from each search."""
        segments: list = []
        found: list[str | None] = []
        for number, (relation, entity) in enumerate(steps):
            before = said(*steps[number - 1], found[-1]) + "; " if number else ""
            segments.append(self._query(relation, entity, before))
            passages = self._search(query_of(relation, entity), count)
            segments.append(passages)
            found.append(self.conclude(passages, relation, entity))
        return segments, found

    def _query(self, relation: str, entity: str, before: str = "") -> str:
        return f"{think(before + need(relation))}<search> {query_of(relation, entity)}</search>"

    def _answer(self, relation: str, entity: str, found: str | None) -> str:
        return answer(said(relation, entity, found), found or NOT_KNOWN)

    # Draws

    def _drawn(self, kind: str, rng: random.Random) -> Question:
        return rng.choice(self._pools[kind])

    def _single(
        self, mix: HarderMix, rng: random.Random, *, also_two_hops: bool = False
    ) -> Question:
        """A question that one fact answers; with `also_two_hops` sometimes one that two would."""
        drawn = rng.random()
        if also_two_hops and rng.random() < mix.two_hop:
            return self._drawn("two_hop", rng)
        kind = "misled" if drawn < mix.misled else "one_hop"
        if mix.misled <= drawn < mix.misled + mix.unanswerable:
            kind = "unanswerable"
        question = self._drawn(kind, rng)
        while len(question.metadata["chain"]) > 1:
            question = self._drawn(kind, rng)
        return question

    def _kind_of_search(self, mix: HarderMix, rng: random.Random) -> Question:
        drawn = rng.random()
        for kind in ("two_hop", "three_hop", "comparison"):
            drawn -= getattr(mix, kind)
            if drawn < 0:
                return self._drawn(kind, rng)
        return self._single(mix, rng)

    def _count(self, mix: HarderMix, rng: random.Random, among: Sequence[int]) -> int:
        if rng.random() < mix.alone:
            return 1
        return rng.choice(among) if rng.random() < mix.vary else self._passages

    def _other_relation(self, relation: str, rng: random.Random) -> str:
        kind = HARDER_RELATIONS[relation].subject
        names = [r.name for r in HARDER_RELATIONS.values() if r.subject == kind]
        return rng.choice([name for name in names if name != relation])

    def _relations_of(self, entity: str) -> tuple[str, ...]:
        """Relations that an entity may have; none of a year, a country and the like."""
        kind = self._kinds.get(entity)
        return tuple(r.name for r in HARDER_RELATIONS.values() if r.subject == kind)

    def _look_alike(self, step: Step, rng: random.Random) -> Step:
        """The same relation of another entity among the best passages: one that looks alike."""
        relation, entity = step
        hits = self._search(query_of(relation, entity), max(_MANY))
        kind = self._kinds[entity]
        others = sorted({h.title for h in hits if self._kinds[h.title] == kind} - {entity})
        return (relation, rng.choice(others)) if others else step

    def _search(self, query: str, count: int) -> list[Passage]:
        if query not in self._found:
            depth = max(*_MANY, self._passages)
            self._found[query] = self._retriever.search([query], depth)[0]
        return self._found[query][:count]
