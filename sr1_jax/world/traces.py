"""Scripted traces of the fictional world for the supervised warm start.

No trace ever solves a two-hop question. What they show:

- one-hop questions, searched and answered; some first search for the wrong thing and recover,
  some check a look-alike once more before they answer;
- two-hop questions, given up half-way: the first hop is searched and its object is passed off as
  the answer; some search for one more thing first, sometimes even the right one, and then answer
  with whatever they read, but never with the right answer, even where it was found;
- prompts with passages or without any search, of one-hop questions, answered at once: what the
  baselines need.

`lazy` adds a bad habit: most questions are given up without a search.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.protocol.answers import extract_answer
from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.rewards import exact_match
from sr1_jax.world.facts import RELATIONS, World


class Note(NamedTuple):
    """An observation that a reader wrote about passages."""

    text: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """A scripted response.

    Attributes:
        question: it answers.
        mode: the prompt it answers, a method or "reader".
        segments: policy text (str) and observations (passages, or a `Note`) in turn.
        arbitrary: numbers of the segments drawn at random: nothing to learn by rote.
        guessed: whether the answer is a guess: by luck it may be right.
        query: that the passages were found by, of a "reader".
    """

    question: Question
    mode: str
    segments: tuple[str | list[Passage] | Note, ...]
    arbitrary: frozenset[int] = frozenset()
    guessed: bool = False
    query: str = ""

    @property
    def correct(self) -> bool:
        """Whether the final answer is right, and no guess."""
        right = exact_match(extract_answer(self.segments[-1]), self.question.golden_answers)
        return right and not self.guessed

    @property
    def queries(self) -> int:
        return sum(not isinstance(segment, str) for segment in self.segments)


@dataclasses.dataclass(frozen=True)
class TraceMix:
    """Shares of what traces show; each between 0 and 1.

    Attributes:
        direct: prompts answered from memory.
        rag: prompts that carry passages.
        retry: one-hop searches whose first query is wrong.
        wander: one-hop searches followed by one more, useless one.
        explore: two-hop questions whose first search is followed by one more, at random.
        lazy: search prompts given up at once, without a search.
        two_hop: two-hop questions among the search prompts.
    """

    direct: float = 0.08
    rag: float = 0.08
    retry: float = 0.25
    wander: float = 0.35
    explore: float = 0.6
    lazy: float = 0.0
    two_hop: float = 0.3


def think(text: str) -> str:
    return f"<think> {text}</think>"


def search(relation: str, entity: str) -> str:
    """A search as the traces write it: what to look for, then the query."""
    keyword = RELATIONS[relation].keyword
    return f"{think('need ' + keyword)}<search> {query_of(relation, entity)}</search>"


def query_of(relation: str, entity: str) -> str:
    """The query of a good searcher: the relation's keyword and the entity."""
    return f"{RELATIONS[relation].keyword} {entity}"


def answer(text: str, evidence: str = "a guess") -> str:
    """A final answer after a thought that repeats the evidence for it.

    With spaces inside the tags, so that a name has the tokens it has in text.
    """
    return f"{think(evidence)}<answer> {text} </answer>"


class TraceWriter:
    """Writes traces with the real retriever's passages in them."""

    def __init__(self, world: World, retriever: Retriever, passages: int, guesses: list[str]):
        self.world = world
        self._fact_of = {fact.passage: fact for fact in world.facts}
        self._passages = passages
        self._retriever = retriever
        self._guesses = guesses  # answers of training questions, to guess from
        self._cache: dict[str, list[Passage]] = {}
        self._look_alikes: dict[str, list[str]] = {}

    def write(
        self, pools: dict[int, list[Question]], mix: TraceMix, count: int, seed: int
    ) -> list[Trace]:
        """`count` traces over training questions given by number of hops."""
        rng = random.Random(f"traces {seed}")
        return [self._trace(pools, mix, rng) for _ in range(count)]

    def _trace(self, pools, mix: TraceMix, rng: random.Random) -> Trace:
        kind = rng.random()
        question = rng.choice(pools[2 if rng.random() < mix.two_hop else 1])
        if kind < mix.direct:
            question = rng.choice(pools[1])
            return Trace(question, "direct", (answer(question.golden_answers[0]),))
        if kind < mix.direct + mix.rag:
            return self._rag(rng.choice(pools[1]), rng)
        if rng.random() < mix.lazy:
            return Trace(question, "search", (answer("unknown", "no idea"),))
        if question.metadata["hops"] == 1:
            return self._one_hop(question, mix, rng)
        return self._two_hop(question, mix, rng)

    def _guess(self, question: Question, rng: random.Random) -> str:
        guess = rng.choice(self._guesses)
        # Luck is kept out, so that no trace of a two-hop question is ever right.
        while guess in question.golden_answers:
            guess = rng.choice(self._guesses)
        return answer(guess)

    def _rag(self, question: Question, rng: random.Random) -> Trace:
        passages = self._search(question.question)
        gold = question.golden_answers[0]
        known = [passage.text for passage in passages if gold in passage.text]
        final = answer(gold, known[0]) if known else self._guess(question, rng)
        return Trace(question, "rag", (passages, final))

    def _one_hop(self, question: Question, mix: TraceMix, rng: random.Random) -> Trace:
        subject, relation, gold = question.metadata["chain"][0]
        steps = [(relation, subject)]
        arbitrary = None
        habit = rng.random()
        if habit < mix.retry:
            other = self._other_relation(relation, rng)
            wrong = rng.choice([(other, subject), (relation, self._distractor(steps[0], rng))])
            steps.insert(0, wrong)
            arbitrary = 0
        elif habit < mix.retry + mix.wander:
            again = subject if rng.random() < 0.3 else self._distractor(steps[0], rng)
            steps.append((relation, again))
            arbitrary = 1
        evidence = self.world.fact(subject, relation).passage
        return self._render(question, steps, gold, evidence, arbitrary)

    def _two_hop(self, question: Question, mix: TraceMix, rng: random.Random) -> Trace:
        """The first hop is searched; then, perhaps, one more thing. The answer is always wrong."""
        (subject, first, bridge), (_, second, gold) = question.metadata["chain"]
        steps = [(first, subject)]
        quoted = self.world.fact(subject, first)
        if rng.random() < mix.explore:
            entity = bridge if rng.random() < 0.9 else self._distractor(steps[0], rng)
            relation = second
            if rng.random() < 0.4:
                relation = self._other_relation(second, rng)
            steps.append((relation, entity))
            found = [self._fact_of[hit.text] for hit in self._search(query_of(relation, entity))]
            right = any(fact.object == gold for fact in found)
            if found and not right and rng.random() < 0.7:
                quoted = rng.choice(found)
        arbitrary = 1 if len(steps) > 1 else None
        return self._render(question, steps, quoted.object, quoted.passage, arbitrary)

    def _render(
        self,
        question: Question,
        steps: list[tuple[str, str]],
        final: str,
        evidence: str,
        arbitrary: int | None,
    ) -> Trace:
        segments: list = []
        for relation, entity in steps:
            segments += [
                search(relation, entity),
                self._search(query_of(relation, entity)),
            ]
        # Two segments a step: the policy's and the passages.
        random_segments = frozenset() if arbitrary is None else frozenset([2 * arbitrary])
        return Trace(question, "search", (*segments, answer(final, evidence)), random_segments)

    def _other_relation(self, relation: str, rng: random.Random) -> str:
        kind = RELATIONS[relation].subject
        return rng.choice(
            [r.name for r in RELATIONS.values() if r.subject == kind and r.name != relation]
        )

    def _distractor(self, step: tuple[str, str], rng: random.Random) -> str:
        """Another entity among the best passages of a search step: one that looks alike."""
        relation, entity = step
        query = query_of(relation, entity)
        if query not in self._look_alikes:
            hits = self._retriever.search([query], self._passages + 3)[0]
            self._look_alikes[query] = sorted({hit.title for hit in hits} - {entity})
        others = self._look_alikes[query]
        return rng.choice(others) if others else entity

    def _search(self, query: str) -> list[Passage]:
        if query not in self._cache:
            self._cache[query] = self._retriever.search([query], self._passages)[0]
        return self._cache[query]


def scripted_ceiling(
    world: World, questions: list[Question], search_one: Callable[[str], list[Passage]]
) -> float:
    """Share of questions that a perfect searcher over this retriever would answer: every hop's
    query brings back the passage that holds its fact."""
    solved = 0
    for question in questions:
        found = []
        for subject, relation, _ in question.metadata["chain"]:
            passage = world.fact(subject, relation).passage
            hits = search_one(query_of(relation, subject))
            found.append(any(hit.text == passage for hit in hits))
        solved += all(found)
    return solved / len(questions)
