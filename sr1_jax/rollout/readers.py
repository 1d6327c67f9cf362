"""Episodes that read for others: which of them wait for a slot, and where they get one.

A reader answers in one segment and calls no tool, so it never waits once it has a slot. The episode
that asked waits in its own slot, with its cache, until the reader is over.

That no run stands still, with one slot or many: free slots go to readers first, and part of the
slots are not given to new questions, so that readers find room. Where a reader has none all the
same, and nothing runs, it takes the slot of the episode it reads for, whose cache is computed again
afterwards. So while a reader waits something runs that ends without waiting for it.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

from sr1_jax.environment.episode import Episode
from sr1_jax.environment.pool import Answer

# Part of the slots that new questions leave to readers. An episode writes about as much before a
# search as its reader does after it: of three slots, two ask in turns and one reads.
_RESERVE = 3


class Reading(NamedTuple):
    """An answer that is read.

    Attributes:
        episode: that reads.
        asking: the episode that is shown what comes of it.
        answer: of the tool; its key is the slot of `asking`.
    """

    episode: Episode
    asking: Episode
    answer: Answer


class Readers:
    """The readers of a run on the slots of this process.

    Args:
        slots: of this process.

    Attributes:
        most_asking: episodes that may have slots and are no readers.
    """

    def __init__(self, slots: int):
        self.most_asking = slots - slots // _RESERVE
        self._waiting: collections.deque[Reading] = collections.deque()
        self._in_slot: dict[int, Reading] = {}

    def add(self, reading: Reading) -> None:
        """Takes a reader, which waits for a slot."""
        self._waiting.append(reading)

    @property
    def seated(self) -> int:
        """Readers that have slots."""
        return len(self._in_slot)

    def seat(self, free: list[int], *, running: bool) -> list[tuple[int, Reading]]:
        """Gives slots to readers: free ones, or if there are none and nothing runs the slot of the
        episode that asked.

        Args:
            free: slots; those that are given away are taken out.
            running: whether an episode in a slot can go on without a reader.
        """
        seated = []
        while self._waiting and free:
            seated.append((free.pop(0), self._waiting.popleft()))
        if self._waiting and not running and not seated:
            reading = self._waiting.popleft()
            seated.append((reading.answer.key, reading))
        self._in_slot |= dict(seated)
        return seated

    def leave(self, slot: int) -> Reading | None:
        """What the episode in a slot, which is over, has read; None if it was no reader."""
        return self._in_slot.pop(slot, None)
