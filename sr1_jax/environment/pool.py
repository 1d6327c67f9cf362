"""Searches in the background: bounded threads, batches, time-outs, retries.

Only the thread that owns the pool decides anything; a worker runs one search and puts what came
of it into a queue. A search that hangs cannot be stopped from outside, so workers are daemon
threads: one that outlives its deadline is forgotten, and never keeps the process from ending.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import ml_collections

from sr1_jax.retrieval.base import Passage, Retriever


@dataclasses.dataclass(frozen=True)
class Found:
    """The answer to one request.

    Attributes:
        key: of the request.
        passages: one list a query; empty lists after a failure that is let pass.
        observation: token ids of all of them.
    """

    key: Hashable
    passages: list[list[Passage]]
    observation: list[int]


@dataclasses.dataclass
class _Batch:
    """Requests that are searched together."""

    requests: list[tuple[Hashable, list[str]]]
    attempts: int = 0
    not_before: float = 0.0
    deadline: float = 0.0
    number: int = 0  # of the attempt; an answer to an older one is too late

    @property
    def queries(self) -> list[str]:
        return [query for _, queries in self.requests for query in queries]


class SearchPool:
    """Runs searches beside the caller.

    Args:
        retriever: `search` may be called from several threads at once.
        render: token ids of an observation with the passages of one request.
        config: see `rollout.default_config`.

    Attributes:
        stats: searches, failures, time-outs and seconds spent in searches, over all workers.
    """

    def __init__(
        self,
        retriever: Retriever,
        render: Callable[[Sequence[Sequence[Passage]]], list[int]],
        config: ml_collections.ConfigDict,
    ):
        self._retriever = retriever
        self._render = render
        self._config = config
        self._requests: collections.deque[tuple[Hashable, list[str]]] = collections.deque()
        self._retries: list[_Batch] = []
        self._running: dict[int, _Batch] = {}
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._numbers = 0
        self.stats: dict[str, float] = collections.defaultdict(float)

    def submit(self, key: Hashable, queries: list[str]) -> None:
        """Asks for the passages of some queries; the answer carries `key`."""
        self._requests.append((key, queries))

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        batches = [*self._retries, *self._running.values()]
        return len(self._requests) + sum(len(batch.requests) for batch in batches)

    def poll(self, wait: float = 0.0) -> list[Found]:
        """Starts what can be started and returns the answers that have come in.

        Args:
            wait: most seconds to wait for the first answer; nothing is waited for if nothing was
                asked.

        Raises:
            RuntimeError: the retriever failed as often as the settings allow.
        """
        until = time.monotonic() + wait
        while True:
            self._start()
            if not self.pending:
                return []
            found = self._collect(until)
            if found or time.monotonic() >= until:
                return found

    def close(self) -> None:
        """Forgets everything: nothing is started any more, no answer is waited for."""
        self._requests.clear()
        self._retries.clear()
        self._running.clear()

    def _start(self) -> None:
        config, now = self._config, time.monotonic()
        while len(self._running) < config.retriever_threads:
            ready = [batch for batch in self._retries if batch.not_before <= now]
            if ready:
                batch = ready[0]
                self._retries.remove(batch)
            elif self._requests:
                batch = _Batch([])
                # At least one request, however many queries it has.
                while self._requests and (
                    not batch.requests
                    or len(batch.queries) + len(self._requests[0][1]) <= config.retriever_batch
                ):
                    batch.requests.append(self._requests.popleft())
            else:
                return
            self._numbers += 1
            batch.number, batch.deadline = self._numbers, now + config.retriever_timeout_seconds
            batch.attempts += 1
            self._running[batch.number] = batch
            threading.Thread(
                target=self._work,
                args=(batch.number, batch.requests),
                name="sr1_jax search",
                daemon=True,
            ).start()

    def _work(self, number: int, requests: list[tuple[Hashable, list[str]]]) -> None:
        began = time.perf_counter()
        try:
            queries = [query for _, part in requests for query in part]
            result = self._retriever.search(queries, self._config.passages)
            if len(result) != len(queries):
                raise RuntimeError(f"{len(result)} results came back for {len(queries)} queries")
            rest, found = iter(result), []
            for key, part in requests:
                passages = [list(next(rest)) for _ in part]
                found.append(Found(key, passages, self._render(passages)))
            outcome = found
        except Exception as error:  # whatever a retriever raises is the owner's to judge
            outcome = error
        self._results.put((number, outcome, time.perf_counter() - began))

    def _collect(self, until: float) -> list[Found]:
        """Answers that are there; waits for the first until something is due."""
        now = time.monotonic()
        due = [batch.deadline for batch in self._running.values()]
        if len(self._running) < self._config.retriever_threads:
            # Else a retry waits for a thread, and so for an answer or a deadline.
            due += [batch.not_before for batch in self._retries]
        patience = max(0.0, min([until, *due]) - now)
        found: list[Found] = []
        try:
            while True:
                number, outcome, seconds = self._results.get(timeout=0 if found else patience)
                batch = self._running.pop(number, None)
                if batch is None:
                    continue  # came after its time-out
                self.stats["retrieval_seconds"] += seconds
                if isinstance(outcome, Exception):
                    found += self._failed(batch, outcome)
                    break  # a thread is free, and what is due has changed
                else:
                    self.stats["searches"] += len(batch.queries)
                    found += outcome
        except queue.Empty:
            pass
        for batch in [b for b in self._running.values() if b.deadline <= time.monotonic()]:
            del self._running[batch.number]
            self.stats["retriever_timeouts"] += 1
            limit = self._config.retriever_timeout_seconds
            found += self._failed(batch, TimeoutError(f"no answer within {limit} seconds"))
        return found

    def _failed(self, batch: _Batch, error: Exception) -> list[Found]:
        config = self._config
        if batch.attempts < config.retriever_attempts:
            pause = config.retriever_backoff_seconds * 2 ** (batch.attempts - 1)
            batch.not_before = time.monotonic() + pause
            self._retries.append(batch)
            return []
        if config.retriever_failure == "raise":
            raise RuntimeError(
                f"The retriever failed {batch.attempts} times; the last error was: {error!r}. "
                'Mend it, or set rollout.retriever_failure="empty" to go on without.'
            ) from error
        self.stats["retriever_failures"] += len(batch.queries)
        self.stats["searches"] += len(batch.queries)
        return [
            Found(key, empty, self._render(empty))
            for key, queries in batch.requests
            for empty in [[[] for _ in queries]]
        ]
