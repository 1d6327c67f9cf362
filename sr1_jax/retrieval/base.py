"""What the rollout engine asks of a search engine."""

import operator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Passage:
    """One search result.

    Attributes:
        id: the passage's id in the corpus.
        title: title of the page it is from; may be empty.
        text: the passage without its title.
        score: the retriever's score, higher is better; comparable within one query only.
    """

    id: str
    title: str
    text: str
    score: float


class EndsRunError(RuntimeError):
    """What failed will fail again, and the run is to end for it.

    A tool or retriever that raises it is neither asked again nor done without, whatever
    environment.options says of failures.
    """


class Unanswered(list):
    """No passages, because nothing was asked. It is no result: no cache keeps it."""


@runtime_checkable
class Retriever(Protocol):
    """Anything that finds passages for queries.

    A retriever may also have two attributes, strings: `fingerprint`, which is the same only where
    searches find the same (a resumed run is held to it), and `corpus_sha256`, the hash of the
    passage file behind it. What else it may have: `hooks`.
    """

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """Finds up to `k` passages for each query, best first.

        Args:
            queries: any strings, the empty one included.
            k: passages a query, at least 1.

        Returns:
            One list a query, in the order of the queries; shorter than `k`, or empty, when fewer
            passages match.

        Raises:
            ValueError: `k` is less than 1.
        """
        ...


def check_search(queries: Any, k: int) -> None:
    """Refuses what no retriever is asked.

    Raises:
        ValueError: `k` is less than 1, or `queries` is not a list of strings.
    """
    if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
        raise ValueError(f"queries must be a list of strings, found {queries!r}.")
    if operator.index(k) < 1:
        raise ValueError(f"k must be at least 1, found {k}.")
