"""The kinds of fictional world that data.world names: how each is drawn, asked about and shown."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sr1_jax.data.questions import Question
from sr1_jax.retrieval import Retriever
from sr1_jax.world.facts import (
    HasPassages,
    World,
    build_world,
    one_hop_questions,
    sample_questions,
    two_hop_questions,
)
from sr1_jax.world.harder.ceiling import harder_ceiling
from sr1_jax.world.harder.facts import HarderWorld, build_harder_world
from sr1_jax.world.harder.questions import questions_by_kind, sample_harder_questions
from sr1_jax.world.harder.traces import HarderMix, HarderTraceWriter
from sr1_jax.world.traces import Trace, TraceMix, TraceWriter, scripted_ceiling


class TraceSource(Protocol):
    """Writes traces about one world.

    Attributes:
        questions: that it writes them for.
    """

    questions: Sequence[Question]

    def write(self, mix: Any, count: int, seed: int) -> list[Trace]:
        """`count` traces that show what the mix says."""
        ...


@dataclasses.dataclass(frozen=True)
class WorldKind:
    """A kind of fictional world.

    Attributes:
        build: (seed, *, people, facts_seed, names_seed) -> world.
        sample: (world, split, *, at_most, seed) -> questions of a split.
        source: (world, retriever, passages a search, seed) -> traces of the training split.
        ceiling: (world, questions, search) -> exact match of a perfect searcher.
        mix: the dataclass of what traces show.
        modes: the prompts that traces answer, in the order their templates are read.
    """

    build: Callable[..., HasPassages]
    sample: Callable[..., list[Question]]
    source: Callable[[Any, Retriever, int, int], TraceSource]
    ceiling: Callable[..., float]
    mix: type
    modes: tuple[str, ...]


class _DemoTraces:
    def __init__(self, world: World, retriever: Retriever, passages: int, seed: int):
        rng = random.Random(seed)
        one_hop = list(one_hop_questions(world, "train", rng))
        two_hop = list(two_hop_questions(world, "train", rng))
        self.questions = one_hop + two_hop
        self._pools = {1: one_hop, 2: two_hop}
        guesses = [question.golden_answers[0] for question in one_hop]
        self._writer = TraceWriter(world, retriever, passages, guesses)

    def write(self, mix: TraceMix, count: int, seed: int) -> list[Trace]:
        return self._writer.write(self._pools, mix, count, seed)


class _HarderTraces:
    def __init__(self, world: HarderWorld, retriever: Retriever, passages: int, seed: int):
        pools = questions_by_kind(world, "train", random.Random(seed))
        self.questions = [question for pool in pools.values() for question in pool]
        self._writer = HarderTraceWriter(world, retriever, passages, pools)

    def write(self, mix: HarderMix, count: int, seed: int) -> list[Trace]:
        return self._writer.write(mix, count, seed)


def _sample_demo(world: World, split: str, *, at_most: int, seed: int) -> list[Question]:
    """As many questions of one hop as of two; fewer if the world is small."""
    there = min(
        sum(1 for _ in questions(world, split, random.Random(0)))
        for questions in (one_hop_questions, two_hop_questions)
    )
    return sample_questions(world, split, each=min(at_most // 2, there), seed=seed)


WORLDS = {
    "demo": WorldKind(
        build_world,
        _sample_demo,
        _DemoTraces,
        scripted_ceiling,
        TraceMix,
        modes=("search", "direct", "rag"),
    ),
    "harder": WorldKind(
        build_harder_world,
        sample_harder_questions,
        _HarderTraces,
        harder_ceiling,
        HarderMix,
        modes=("search", "direct", "rag", "cot", "ircot", "search_o1", "reader"),
    ),
}
