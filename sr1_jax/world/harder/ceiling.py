"""What a perfect searcher and reader would answer in the harder world, by kind of question."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from sr1_jax.data.questions import Question
from sr1_jax.retrieval.base import Passage
from sr1_jax.world.harder.facts import HarderWorld
from sr1_jax.world.traces import query_of


def ceilings_by_kind(
    world: HarderWorld, questions: Sequence[Question], search_one: Callable[[str], list[Passage]]
) -> dict[str, float]:
    """Share of the questions of each kind whose facts are all found, each by a query of its own.

    That a fact is absent needs no passage: it follows from finding none.
    """
    solved = collections.defaultdict(list)
    for question in questions:
        found = []
        for subject, relation, _ in question.metadata["chain"]:
            fact = world.fact(subject, relation)
            hits = search_one(query_of(relation, subject))
            found.append(fact is None or any(hit.text == fact.passage for hit in hits))
        solved[question.metadata["kind"]].append(all(found))
    return {kind: sum(ones) / len(ones) for kind, ones in sorted(solved.items())}


def harder_ceiling(
    world: HarderWorld, questions: Sequence[Question], search_one: Callable[[str], list[Passage]]
) -> float:
    """The same over all questions."""
    counts = collections.Counter(question.metadata["kind"] for question in questions)
    shares = ceilings_by_kind(world, questions, search_one)
    return sum(counts[kind] * share for kind, share in shares.items()) / len(questions)
