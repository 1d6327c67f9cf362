"""What a retriever may have beside `search`, and retrievers around others.

- `at_step(step)`: told before the rollouts of a training step, from 1 on, and with 0 before any
  others, such as those of an evaluation.
- `counts() -> dict[str, float]`: totals since it was opened, by name. Engines log what a run
  adds to them as `rollout/search_<name>`.
- `told_at_end() -> str`: one line for people when a program is over, such as what it spent.
- `passage(number) -> Passage`, beside `len()`: any passage of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sr1_jax.retrieval.base import Passage, Retriever


class Wrapper:
    """A retriever around another; whatever it does not have itself is that of the other.

    Attributes:
        inner: the other.
    """

    def __init__(self, inner: Retriever):
        self.inner = inner

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`."""
        return self.inner.search(queries, k)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self.inner, name)


def unwrapped(retriever: Any) -> Any:
    """What searches in the end."""
    while isinstance(retriever, Wrapper):
        retriever = retriever.inner
    return retriever


def at_step(retriever: Any, step: int) -> None:
    """Tells a retriever the step of training, if it wants to know; 0 stands for none."""
    tell = getattr(retriever, "at_step", None)
    if tell is not None:
        tell(step)


def counts_of(retriever: Any) -> dict[str, float]:
    """Totals of a retriever, or of anything with `counts`; none where it counts nothing."""
    count = getattr(retriever, "counts", None)
    return dict(count()) if count is not None else {}


def counts_since(retriever: Any, before: Mapping[str, float]) -> dict[str, float]:
    """What totals have grown by since `before`, an earlier `counts_of`."""
    return {key: value - before.get(key, 0.0) for key, value in counts_of(retriever).items()}


def told_at_end(retriever: Any) -> str:
    """What a retriever has to say when a program is over; "" if it is nothing."""
    tell = getattr(retriever, "told_at_end", None)
    return tell() if tell is not None else ""
