"""Noise: some of what a retriever finds is replaced by random passages.

The share that is replaced follows the curriculum of ZeroSearch (Sun et al., arXiv 2505.04588),

    p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s)

at step i of m, from p_s to p_e, slowly first for b above 1; b = 1 stands for the straight line that
is its limit.

What is replaced, and by what, depends on the seed, the query and the rank alone: not on the order
of searches, nor on processes. What is replaced at one share is so at every higher one.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.retrieval.hooks import Wrapper, at_step, counts_of, unwrapped

# Passages of a corpus file that random ones are drawn from, where it has no random access.
POOL = 10_000
# Draws before a passage that the query found anyway is taken for noise.
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The share of results that are replaced.

    Attributes:
        start: before the first step.
        end: from step `steps` on; None: as `start`.
        steps: over which it goes from `start` to `end`.
        base: above 1 it rises late, below 1 early; 1: evenly.
        evaluation: outside of training steps.
    """

    start: float
    end: float | None = None
    steps: int = 0
    base: float = 4.0
    evaluation: float = 0.0

    def share(self, step: int) -> float:
        """At a step of training, from 1 on; 0 stands for none."""
        if step < 1:
            return self.evaluation
        if self.end is None:
            return self.start
        done = min(step / self.steps, 1.0)
        gone = done if self.base == 1 else (self.base**done - 1) / (self.base - 1)
        return self.start + gone * (self.end - self.start)


class Noisy(Wrapper):
    """A retriever some of whose results are random passages.

    Args:
        inner: what searches.
        passage: number -> passage of the corpus.
        count: of these passages.
        schedule: of the share.
        seed: of what is drawn.

    Attributes:
        share: of results that are replaced now.
    """

    def __init__(
        self,
        inner: Retriever,
        passage: Callable[[int], Passage],
        count: int,
        schedule: Schedule,
        seed: int = 0,
    ):
        super().__init__(inner)
        self._passage, self._count = passage, count
        self._schedule, self._seed = schedule, seed
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self.share = schedule.share(0)

    @property
    def fingerprint(self) -> str:
        inner = getattr(self.inner, "fingerprint", "")
        if not inner:
            return ""
        told = [inner, dataclasses.asdict(self._schedule), self._seed, self._count]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def at_step(self, step: int) -> None:
        """See `hooks.at_step`."""
        self.share = self._schedule.share(step)
        at_step(self.inner, step)

    def counts(self) -> dict[str, float]:
        """Passages found, and how many of them were replaced."""
        with self._lock:
            return counts_of(self.inner) | {key: float(n) for key, n in self._counts.items()}

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`."""
        share = self.share
        results = self.inner.search(queries, k)
        noisy = [self._with_noise(query, found, share) for query, found in zip(queries, results)]
        with self._lock:
            self._counts["noise_passages"] += sum(map(len, results))
            self._counts["noise_replaced"] += sum(
                new is not old
                for found, changed in zip(results, noisy)
                for old, new in zip(found, changed)
            )
        # As many as were found: a wrong number is not to be hidden.
        return noisy + list(results[len(noisy) :])

    def _with_noise(self, query: str, found: list[Passage], share: float) -> list[Passage]:
        taken = {passage.id for passage in found}
        changed = []
        for rank, passage in enumerate(found):
            draw = self._rng(query, rank)
            if draw.random() < share and (other := self._other(draw, taken)) is not None:
                taken.add(other.id)
                passage = dataclasses.replace(other, score=passage.score)
            changed.append(passage)
        return changed

    def _rng(self, query: str, rank: int) -> random.Random:
        told = json.dumps([self._seed, query, rank]).encode("ascii")
        return random.Random(hashlib.blake2b(told, digest_size=16).digest())

    def _other(self, draw: random.Random, taken: set[str]) -> Passage | None:
        """A random passage that is not among the results; None in a corpus without one."""
        for _ in range(_TRIES):
            passage = self._passage(draw.randrange(self._count))
            if passage.id not in taken:
                return passage
        return None


def with_noise(
    retriever: Retriever, noise: Mapping[str, Any], corpus: Path | None = None
) -> Retriever:
    """A retriever with the noise of the settings; the same one where there is to be none.

    Random passages come from the retriever, where it has `passage(number)` and a length, else from
    10,000 that are drawn from the corpus file.

    Args:
        retriever: of any kind.
        noise: the section `retrieval.noise` of the settings.
        corpus: the passage file; None where there is none.

    Raises:
        ValueError: there is nothing to draw random passages from; or as `check_noise`.
    """
    schedule = check_noise(noise)
    if schedule is None:
        return retriever
    source = unwrapped(retriever)
    if hasattr(source, "passage") and hasattr(source, "__len__"):
        return Noisy(retriever, source.passage, len(source), schedule, noise["seed"])
    if corpus is None:
        raise ValueError(
            "retrieval.noise needs random passages, which this retriever does not give: name the "
            "file of its passages (data.corpus), or set retrieval.noise.start=0."
        )
    pool = draw_passages(corpus, POOL, noise["seed"])
    return Noisy(retriever, pool.__getitem__, len(pool), schedule, noise["seed"])


def check_noise(noise: Mapping[str, Any]) -> Schedule | None:
    """The schedule of the settings; None where nothing is ever replaced.

    Raises:
        ValueError: an end without the steps that lead to it.
    """
    settings = ("start", "end", "steps", "base", "evaluation")
    schedule = Schedule(**{name: noise[name] for name in settings})
    if schedule.end is not None and schedule.steps < 1:
        raise ValueError(
            f"retrieval.noise.end={schedule.end} is reached after retrieval.noise.steps steps, but "
            f"that is {schedule.steps}: set it to, say, the number of training steps."
        )
    shares = (schedule.start, schedule.end or 0.0, schedule.evaluation)
    return schedule if any(shares) else None


def draw_passages(corpus: Path, count: int, seed: int) -> list[Passage]:
    """At most `count` passages of a file, each as likely as any other (reservoir sampling, Vitter's
    algorithm R)."""
    rng = random.Random(seed)
    drawn: list[Passage] = []
    for number, (id, title, text) in enumerate(read_corpus(corpus)):
        place = number if number < count else rng.randrange(number + 1)
        if place < count:
            passage = Passage(id, title, text, 0.0)
            drawn[place : place + 1] = [passage]
    return drawn
