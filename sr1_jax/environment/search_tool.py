"""The search tool: passages of a retriever for the queries of a policy."""

from __future__ import annotations

from typing import NamedTuple

from sr1_jax.environment.tool import Observation
from sr1_jax.protocol.answers import queries_of
from sr1_jax.protocol.observations import merge_passages, passages_as_text
from sr1_jax.protocol.tags import INFORMATION, SEARCH
from sr1_jax.retrieval.base import Passage, Retriever


class Reading(NamedTuple):
    """What the policy wrote when it read passages in a prompt of their own.

    Attributes:
        text: all that it wrote.
        answer: what of it is shown instead of the passages; None if it gave none.
        tokens: that it wrote.
    """

    text: str
    answer: str | None
    tokens: int


class SearchRecord(NamedTuple):
    """What a call of the search tool found.

    Attributes:
        queries: one, or with parallel queries one a line of the request.
        passages: of each query, best first.
        reading: of the passages, where the policy is shown what it wrote of them instead.
    """

    queries: list[str]
    passages: list[list[Passage]]
    reading: Reading | None = None


class SearchTool:
    """Searches a retriever, whose `search` may run in several threads at once.

    Args:
        retriever: may be None where no request will come.
        passages: a query.
        parallel_queries: whether each line of a request is a query; else all of it is one.
        reads_thoughts: whether the requests are the policy's thoughts, each a query.
    """

    tag = SEARCH
    observation_tag = INFORMATION

    def __init__(
        self,
        retriever: Retriever | None,
        passages: int,
        *,
        parallel_queries: bool = False,
        reads_thoughts: bool = False,
    ):
        self.retriever = retriever
        self.reads_thoughts = reads_thoughts
        self._passages = passages
        self._parallel = parallel_queries and not reads_thoughts

    def queries(self, request: str) -> list[str]:
        """The queries of a request; none in a blank one."""
        queries = queries_of(request)
        return queries if self._parallel or not queries else [" ".join(queries)]

    def call(self, requests: list[str]) -> list[Observation]:
        """See `Tool.call`; the record of each observation is a `SearchRecord`.

        Raises:
            RuntimeError: the retriever gives another number of results than it got queries.
        """
        queries_of_each = [self.queries(request) for request in requests]
        queries = [query for queries in queries_of_each for query in queries]
        results = self.retriever.search(queries, self._passages)
        if len(results) != len(queries):
            raise RuntimeError(f"{len(results)} results came back for {len(queries)} queries")
        rest, observations = iter(results), []
        for own in queries_of_each:
            passages = [list(next(rest)) for _ in own]
            text = passages_as_text(merge_passages(passages))
            observations.append(Observation(text, SearchRecord(own, passages)))
        return observations

    def failed(self, request: str) -> Observation:
        """What a request comes to that no attempt could answer: no passages."""
        queries = self.queries(request)
        return Observation("", SearchRecord(queries, [[] for _ in queries]))
