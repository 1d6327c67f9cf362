"""An endless, shuffled, resumable stream of question batches."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

import grain

from sr1_jax.data.questions import Question


class QuestionSource(Protocol):
    """Random access to questions: a list, or what `open_questions` returns."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...


def question_batches(
    source: QuestionSource | Sequence[Question],
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
) -> Iterator[list[Question]]:
    """Batches of questions for ever; batch n depends on (source, seed, n) alone.

    Each epoch is a new random order of the whole source. Epochs follow each other without a gap,
    so a batch may span two or more of them, and a batch may be larger than the source.

    Args:
      source: the questions, at least one.
      batch_size: questions a batch, at least 1.
      seed: 0 to 2**32 - 1.
      start_step: number of the first batch; a run resumed at step n continues exactly where an
        uninterrupted one would be.

    Raises:
      ValueError: an empty source or an argument out of range (raised at once).
    """
    if len(source) == 0:
        raise ValueError("No questions to draw from: the source is empty.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, found {seed}.")
    if start_step < 0:
        raise ValueError(f"start_step must not be negative, found {start_step}.")
    batches = (
        grain.MapDataset.source(source)
        # Mixed by grain before use: a bare shuffle(seed) draws epoch e from seed + e, so that
        # runs with neighbouring seeds would share all epochs but one.
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, drop_remainder=True, batch_fn=list)
    )
    return (batches[step] for step in count(start_step))
