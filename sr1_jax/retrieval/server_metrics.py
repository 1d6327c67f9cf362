"""Metrics of the server, in the text form of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
from prometheus_client.core import CounterMetricFamily, Metric

from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.hooks import counts_of

_PATHS = ("/retrieve", "/health", "/metrics", "/openapi.json")


class ServerMetrics:
    """Counts what a server does.

    Args:
        retriever: whose counts are told too, such as hits of a cache.
    """

    media_type = prometheus_client.CONTENT_TYPE_LATEST

    def __init__(self, retriever: Retriever):
        # One of its own: an application is made more than once in a process, in tests.
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "sr1_requests", "Requests answered", ["path", "status"], registry=self._registry
        )
        self._queries = prometheus_client.Counter(
            "sr1_queries", "Queries searched", registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "sr1_request_seconds",
            "Time from the first byte of a request to its answer",
            buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            registry=self._registry,
        )
        prometheus_client.ProcessCollector(registry=self._registry)  # memory, among others
        self._registry.register(_Counts(retriever))

    def answered(self, path: str, status: int) -> None:
        """A request was answered. Paths that are not there share a row: they may be anything."""
        self._requests.labels(path if path in _PATHS else "other", str(status)).inc()

    def searched(self, queries: int, seconds: float) -> None:
        """A request was searched for."""
        self._queries.inc(queries)
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics."""
        return prometheus_client.generate_latest(self._registry)


class _Counts:
    """The counts of a retriever."""

    def __init__(self, retriever: Retriever):
        self._retriever = retriever

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("sr1_retriever", "Of the retriever", labels=["what"])
        for name, count in sorted(counts_of(self._retriever).items()):
            family.add_metric([name], count)
        yield family
