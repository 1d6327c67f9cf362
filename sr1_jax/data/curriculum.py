"""A curriculum by measured solve rate: what was solved while training decides what is asked.

The solve rate r of a question is the share of its samples that were right, averaged over the times
at which it was asked: r ← (1 − a)·r + a·share, and r = share at the first time. A question that
was asked before is drawn with the weight

    w(r) = floor + (1 − floor) · exp(−((r − target) / width)² / 2)

A reward of 0 or 1 that is 1 with probability r has the variance r(1 − r), and a group of equal
rewards has no advantage: questions near r = 1/2 teach most. Sampling by r(1 − r) is the
"learnability" of arXiv 2408.15099; the bell around a target, and its floor, which lets no question
be lost for ever, are ours. New questions have no rate: a fixed share of the draws is theirs as long
as there are any.

Draws are without replacement until rates are told, by the method of Efraimidis and Spirakis
(Information Processing Letters 97, 2006): of the questions that can be drawn, those with the
largest log(u)/w are, u uniform in (0, 1).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sr1_jax.data.mixing import group_weights, schedule
from sr1_jax.data.prepared import index_of, read
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import check_count, check_stream


@dataclass(frozen=True)
class Curriculum:
    """Settings of the module's formula.

    Attributes:
        target: rate of the largest weight, 0 to 1.
        width: of the bell, above 0.
        floor: least weight, above 0 to 1, of a largest one of 1.
        momentum: a, weight of the newest share in a rate, above 0 to 1.
        new: share of the draws for questions not asked yet, 0 to 1.
    """

    target: float = 0.5
    width: float = 0.25
    floor: float = 0.05
    momentum: float = 0.5
    new: float = 0.5

    def weights(self, rate_Q: np.ndarray) -> np.ndarray:
        """float64 [Q], w(r) of each rate."""
        distance_Q = (np.asarray(rate_Q, np.float64) - self.target) / self.width
        return self.floor + (1 - self.floor) * np.exp(-0.5 * distance_Q**2)


class CurriculumStream:
    """Questions for ever; those at a position depend on (source, seed, weights, position), on the
    rates told so far and on how much was taken since.

    Every process that is told the same rates draws the same questions.

    Args:
        source: the questions, at least one.
        seed: 0 to 2**32 - 1.
        curriculum: its settings.
        weights: as in `QuestionStream`; within a set the curriculum decides.
        state: of a stream of the same source that this one continues.

    Attributes:
        position: questions taken so far.
        rate_Q: float32 [Q], rate of each question of the source; NaN: not asked yet.

    Raises:
        ValueError: as `QuestionStream`, or a state of another source.
    """

    def __init__(
        self,
        source: Any,
        *,
        seed: int,
        curriculum: Curriculum,
        weights: Mapping[str, float] | None = None,
        state: Mapping[str, Any] | None = None,
    ):
        state = state or {}
        self.position = state.get("position", 0)
        check_stream(source, seed, self.position)
        self._source, self._seed, self._curriculum = source, seed, curriculum
        self.rate_Q = _unpacked(state.get("curriculum"), len(source))
        self._schedule = None
        self._groups = [np.arange(len(source))]
        if weights:
            index = index_of(source)
            shares = group_weights(index, weights)
            numbers = [index.sources.index(name) for name in shares]
            self._groups = [np.flatnonzero(index.source_Q == number) for number in numbers]
            self._schedule = schedule(shares)
        # Drawn since rates were told last: not to be drawn again, and where they stand.
        self._drawn_Q = np.zeros(len(source), bool)
        self._number_of: dict[str, int] = {}

    def take(self, count: int) -> list[Question]:
        """The next `count` questions; none twice, nor one taken since `observe`, while a set has
        others.

        Raises:
            ValueError: fewer than one is asked for.
        """
        check_count(count)
        places = range(self.position, self.position + count)
        group_of = [self._schedule[place] if self._schedule else 0 for place in places]
        drawn = {
            group: iter(self._draw(group, group_of.count(group))) for group in sorted({*group_of})
        }
        self.position += count
        numbers = [int(next(drawn[group])) for group in group_of]
        questions = read(self._source, numbers)
        self._number_of.update(zip((question.id for question in questions), numbers))
        return questions

    def observe(self, questions: Sequence[Question], rates: Sequence[float]) -> None:
        """Takes down what share of the samples of each question was right, 0 to 1.

        Args:
            questions: that were taken since the last call; of one that comes twice both count.
            rates: of each.
        """
        new = np.float32(self._curriculum.momentum)
        for question, rate in zip(questions, rates, strict=True):
            number, rate = self._number_of[question.id], np.float32(rate)
            old = self.rate_Q[number]
            self.rate_Q[number] = rate if np.isnan(old) else old + new * (rate - old)
        self._drawn_Q[:] = False
        self._number_of.clear()

    def state(self) -> dict[str, Any]:
        """The position, and the rates as compressed text: a few bytes a question that was asked."""
        packed = base64.b64encode(zlib.compress(self.rate_Q.astype("<f4").tobytes())).decode()
        return {
            "position": self.position,
            "curriculum": {"questions": len(self.rate_Q), "rates": packed},
        }

    def metrics(self) -> dict[str, float]:
        """curriculum/asked, the share of all questions that were asked; of those curriculum/rate,
        the mean rate, and curriculum/solved and curriculum/unsolved, the shares of rates above 0.9
        and below 0.1."""
        rate_Q = self.rate_Q[~np.isnan(self.rate_Q)]
        found = {"curriculum/asked": len(rate_Q) / len(self.rate_Q)}
        if len(rate_Q):
            found["curriculum/rate"] = float(rate_Q.mean(dtype=np.float64))
            found["curriculum/solved"] = float((rate_Q > 0.9).mean())
            found["curriculum/unsolved"] = float((rate_Q < 0.1).mean())
        return found

    def _draw(self, group: int, count: int) -> np.ndarray:
        """Numbers of the next `count` questions of a set, in the order in which they are asked."""
        mine = self._groups[group]
        parts: list[np.ndarray] = []
        missing = count
        while missing:
            free = mine[~self._drawn_Q[mine]]
            if not len(free):  # the set is smaller than what is wanted of it
                self._drawn_Q[mine] = False
                continue
            part = self._draw_once(free, min(missing, len(free)), (group, len(parts)))
            self._drawn_Q[part] = True
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)

    def _draw_once(self, free: np.ndarray, count: int, stream: tuple[int, int]) -> np.ndarray:
        """`count` of the questions `free`, without replacement."""
        seed = (self._seed, self.position, *stream)
        log_u = _log_uniform(len(free), (*seed, 0))
        is_new = np.isnan(self.rate_Q[free])
        new = self._curriculum.new
        # Rounded so that over many draws the share is met, however few are drawn at a time.
        wanted = int((self.position + count) * new) - int(self.position * new)
        wanted = min(max(wanted, count - int((~is_new).sum())), int(is_new.sum()))
        keys = log_u.copy()
        with np.errstate(over="ignore"):  # a weight next to 0: drawn last
            keys[~is_new] /= self._curriculum.weights(self.rate_Q[free[~is_new]])
        order = np.argsort(-keys, kind="stable")
        chosen = np.concatenate(
            [order[is_new[order]][:wanted], order[~is_new[order]][: count - wanted]]
        )
        # Mixed again, or new questions would always stand first.
        return free[chosen[np.argsort(_log_uniform(count, (*seed, 1)), kind="stable")]]


def _log_uniform(count: int, seed: tuple[int, ...]) -> np.ndarray:
    """float64 [count], logarithms of numbers uniform in (0, 1).

    Of the raw bits: unlike the methods of NumPy's Generator they are the same in all versions.
    """
    bits = np.random.PCG64(seed).random_raw(count)
    return np.log(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _unpacked(saved: Mapping[str, Any] | None, count: int) -> np.ndarray:
    if saved is None:
        return np.full(count, np.nan, np.float32)
    if saved["questions"] != count:
        raise ValueError(
            f"The curriculum was saved for {saved['questions']} questions, now there are {count}: "
            "use the same questions or another --workdir."
        )
    rates = zlib.decompress(base64.b64decode(saved["rates"]))
    return np.frombuffer(rates, "<f4").astype(np.float32)
