"""An endless, shuffled, resumable stream of questions."""

from collections.abc import Sequence
from typing import Protocol

import grain

from sr1_jax.data.questions import Question


class QuestionSource(Protocol):
    """Random access to questions: a list, or what `open_questions` returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...


class QuestionStream:
    """Questions for ever; the one at a position depends on (source, seed, position) alone.

    Each epoch is a new random order of the whole source. Epochs follow each other without a gap,
    so what is taken at once may span two or more of them, and be more than the source holds.

    Args:
        source: the questions, at least one.
        seed: 0 to 2**32 - 1.
        position: questions taken already; a run resumed there continues exactly where an
            uninterrupted one would be.

    Attributes:
        position: questions taken so far.

    Raises:
        ValueError: an empty source or an argument out of range (raised at once).
    """

    def __init__(
        self, source: QuestionSource | Sequence[Question], *, seed: int, position: int = 0
    ):
        if len(source) == 0:
            raise ValueError("No questions to draw from: the source is empty.")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, found {seed}.")
        if position < 0:
            raise ValueError(f"position must not be negative, found {position}.")
        self.position = position
        self._questions = (
            grain.MapDataset.source(source)
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
        if count < 1:
            raise ValueError(f"At least 1 question has to be taken, not {count}.")
        start, self.position = self.position, self.position + count
        return [self._questions[index] for index in range(start, self.position)]
