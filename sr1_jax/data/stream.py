"""An endless, shuffled, resumable stream of questions."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain

from sr1_jax.data.mixing import mixed
from sr1_jax.data.prepared import index_of, read
from sr1_jax.data.questions import Question


class QuestionSource(Protocol):
    """Random access to questions: a list, or what `open_questions` returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...


class Stream(Protocol):
    """Questions for ever, for training.

    Attributes:
        position: questions taken so far.
    """

    position: int

    def take(self, count: int) -> list[Question]:
        """The next `count` questions."""
        ...

    def observe(self, questions: Sequence[Question], rates: Sequence[float]) -> None:
        """Tells what share of the samples of each question was right."""
        ...

    def state(self) -> dict[str, Any]:
        """What a stream that goes on here has to be given; JSON-able."""
        ...

    def metrics(self) -> dict[str, float]:
        """Of the stream, by name; none without a curriculum."""
        ...


class QuestionStream:
    """Questions for ever; the one at a position depends on (source, seed, weights, position) alone.

    Without weights each epoch is a new random order of the whole source. Epochs follow each other
    without a gap, so what is taken at once may span two or more of them, and be more than the
    source holds. With weights each set has epochs of its own, see `mixing.mixed`.

    Args:
        source: the questions, at least one.
        seed: 0 to 2**32 - 1.
        position: questions taken already; a run resumed there continues exactly where an
            uninterrupted one would be.
        weights: share of each set by name, in any unit; none: sets are drawn as they occur.

    Attributes:
        position: questions taken so far.

    Raises:
        ValueError: an empty source, an argument out of range, or weights that do not fit the sets
            (raised at once).
    """

    def __init__(
        self,
        source: QuestionSource | Sequence[Question],
        *,
        seed: int,
        position: int = 0,
        weights: Mapping[str, float] | None = None,
    ):
        check_stream(source, seed, position)
        self.position = position
        self._source = source
        if weights:
            self._numbers = mixed(index_of(source), seed, weights)
            return
        # Grain decides which questions are drawn; they are read together, which is faster.
        self._numbers = (
            grain.MapDataset.range(len(source))
            # Mixed by grain before use: a bare shuffle(seed) draws epoch e from seed + e, so that
            # runs with neighbouring seeds would share all epochs but one.
            .seed(seed)
            .shuffle()
            .repeat()
        )

    def take(self, count: int) -> list[Question]:
        """The next `count` questions.

        Raises:
            ValueError: fewer than one is asked for.
        """
        check_count(count)
        start, self.position = self.position, self.position + count
        return read(self._source, [self._numbers[place] for place in range(start, self.position)])

    def observe(self, questions: Sequence[Question], rates: Sequence[float]) -> None:
        """Changes nothing: what is drawn does not depend on what was solved."""

    def state(self) -> dict[str, Any]:
        """See `Stream.state`."""
        return {"position": self.position}

    def metrics(self) -> dict[str, float]:
        """None."""
        return {}


def check_stream(source: Any, seed: int, position: int) -> None:
    """Refuses an empty source and arguments out of range; see `QuestionStream`."""
    if len(source) == 0:
        raise ValueError("No questions to draw from: the source is empty.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, found {seed}.")
    if position < 0:
        raise ValueError(f"position must not be negative, found {position}.")


def check_count(count: int) -> None:
    """Refuses to take nothing."""
    if count < 1:
        raise ValueError(f"At least 1 question has to be taken, not {count}.")
