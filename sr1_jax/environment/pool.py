"""Calls of tools in the background: threads, batches, time-outs, retries.

Only the thread that owns the pool decides anything; a worker makes one call and puts what came
of it into a queue. A call that hangs cannot be stopped from outside, so workers are daemon
threads: one that outlives its deadline is forgotten, and never keeps the process from ending. It
no longer counts among the threads of its tool, of which only those that are waited for are bounded.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping

from sr1_jax.environment.settings import CallOptions
from sr1_jax.environment.tool import Observation, Tool
from sr1_jax.retrieval.base import EndsRunError


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        key: of the request.
        observation: of the tool; an empty one after a failure that is let pass.
        ids: token ids that show it.
    """

    key: Hashable
    observation: Observation
    ids: list[int]


@dataclasses.dataclass
class _Batch:
    """Requests that one call answers."""

    tag: str
    requests: list[tuple[Hashable, str]]
    attempts: int = 0
    not_before: float = 0.0
    deadline: float = 0.0
    number: int = 0  # of the attempt; an answer to an older one is too late


class ToolPool:
    """Calls tools beside the caller.

    Args:
        tools: each has a limit of its own on calls under way.
        render: (tag, observation) -> token ids; called in the workers' threads.
        options: how a tool is called, by tag; the defaults for tools that are not in it.

    Attributes:
        stats: of each tool requests answered (<tag>_calls), seconds spent in calls over all
            threads (<tag>_seconds), time-outs (<tag>_timeouts) and requests given up
            (<tag>_failures).
    """

    def __init__(
        self,
        tools: Iterable[Tool],
        render: Callable[[str, Observation], list[int]],
        options: Mapping[str, CallOptions],
    ):
        self._tools = {tool.tag: tool for tool in tools}
        self._options = {tag: options.get(tag, CallOptions()) for tag in self._tools}
        self._render = render
        self._requests: dict[str, collections.deque[tuple[Hashable, str]]] = {
            tag: collections.deque() for tag in self._tools
        }
        self._retries: list[_Batch] = []
        self._running: dict[int, _Batch] = {}
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._attempts = 0
        self.stats: dict[str, float] = collections.defaultdict(float)

    def submit(self, key: Hashable, tag: str, request: str) -> None:
        """Asks a tool; the answer carries `key`."""
        self._requests[tag].append((key, request))

    @property
    def pending(self) -> int:
        """Requests without an answer."""
        batches = [*self._retries, *self._running.values()]
        return sum(map(len, self._requests.values())) + sum(len(b.requests) for b in batches)

    def poll(self, wait: float = 0.0) -> list[Answer]:
        """Starts what can be started and returns the answers that have come in.

        Args:
            wait: most seconds to wait for the first answer; nothing is waited for if nothing was
                asked.

        Raises:
            RuntimeError: a tool failed as often as its options allow.
            EndsRunError: a tool says that nothing helps any more.
        """
        until = time.monotonic() + wait
        while True:
            self._start()
            if not self.pending:
                return []
            answers = self._collect(until)
            if answers or time.monotonic() >= until:
                return answers

    def close(self) -> None:
        """Forgets everything: nothing is started any more, no answer is waited for."""
        for requests in self._requests.values():
            requests.clear()
        self._retries.clear()
        self._running.clear()

    def _free_threads(self, tag: str) -> int:
        return self._options[tag].threads - sum(b.tag == tag for b in self._running.values())

    def _start(self) -> None:
        """Starts calls, those that are due again first, as far as threads are free."""
        for tag, requests in self._requests.items():
            options = self._options[tag]
            while self._free_threads(tag) > 0:
                now = time.monotonic()
                due = [b for b in self._retries if b.tag == tag and b.not_before <= now]
                if due:
                    batch = due[0]
                    self._retries.remove(batch)
                elif requests:
                    size = min(len(requests), options.batch)
                    batch = _Batch(tag, [requests.popleft() for _ in range(size)])
                else:
                    break
                self._call(batch, now + options.timeout_seconds)

    def _call(self, batch: _Batch, deadline: float) -> None:
        self._attempts += 1
        batch.number, batch.deadline = self._attempts, deadline
        batch.attempts += 1
        self._running[batch.number] = batch
        threading.Thread(
            target=self._work,
            args=(batch.number, batch.tag, batch.requests),
            name=f"sr1_jax {batch.tag}",
            daemon=True,
        ).start()

    def _work(self, number: int, tag: str, requests: list[tuple[Hashable, str]]) -> None:
        began = time.perf_counter()
        try:
            found = self._tools[tag].call([request for _, request in requests])
            if len(found) != len(requests):
                raise RuntimeError(
                    f"{len(found)} observations came back for {len(requests)} requests"
                )
            outcome = [
                Answer(key, observation, self._render(tag, observation))
                for (key, _), observation in zip(requests, found)
            ]
        except Exception as error:  # whatever a tool raises is the owner's to judge
            outcome = error
        self._results.put((number, outcome, time.perf_counter() - began))

    def _collect(self, until: float) -> list[Answer]:
        """Answers that are there; waits for the first until something is due."""
        answers: list[Answer] = []
        patience = max(0.0, self._next_event(until) - time.monotonic())
        try:
            while True:
                number, outcome, seconds = self._results.get(timeout=0 if answers else patience)
                batch = self._running.pop(number, None)
                if batch is None:
                    continue  # came after its time-out
                self.stats[f"{batch.tag}_seconds"] += seconds
                if isinstance(outcome, EndsRunError):
                    raise outcome
                if isinstance(outcome, Exception):
                    answers += self._failed(batch, outcome)
                    break  # a thread is free, and what is due has changed
                self.stats[f"{batch.tag}_calls"] += len(batch.requests)
                answers += outcome
        except queue.Empty:
            pass
        return answers + self._timed_out()

    def _next_event(self, until: float) -> float:
        """When the next call times out, or can be tried again; `until` if that is sooner."""
        deadlines = [batch.deadline for batch in self._running.values()]
        # A retry without a free thread waits for an answer or a deadline.
        retries = [b.not_before for b in self._retries if self._free_threads(b.tag) > 0]
        return min([until, *deadlines, *retries])

    def _timed_out(self) -> list[Answer]:
        answers: list[Answer] = []
        for batch in [b for b in self._running.values() if b.deadline <= time.monotonic()]:
            del self._running[batch.number]
            self.stats[f"{batch.tag}_timeouts"] += 1
            limit = self._options[batch.tag].timeout_seconds
            answers += self._failed(batch, TimeoutError(f"no answer within {limit} seconds"))
        return answers

    def _failed(self, batch: _Batch, error: Exception) -> list[Answer]:
        """Tries a batch again later, or gives it up."""
        tag, options = batch.tag, self._options[batch.tag]
        if batch.attempts < options.attempts:
            pause = options.backoff_seconds * 2 ** (batch.attempts - 1)
            batch.not_before = time.monotonic() + pause
            self._retries += self._last_attempts(batch, error)
            return []
        if options.failure == "raise":
            raise RuntimeError(
                f"The tool {tag} failed {batch.attempts} times; the last error was: {error!r}. "
                f'Mend it, or set environment.options.{tag}.failure="empty" to go on without.'
            ) from error
        self.stats[f"{tag}_failures"] += len(batch.requests)
        self.stats[f"{tag}_calls"] += len(batch.requests)
        nothing = getattr(self._tools[tag], "failed", lambda request: Observation(""))
        return [
            Answer(key, observation, self._render(tag, observation))
            for key, request in batch.requests
            for observation in [nothing(request)]
        ]

    def _last_attempts(self, batch: _Batch, error: Exception) -> list[_Batch]:
        """What is tried next of a batch that failed: the same, but the last time one request after
        the other, so that one that a tool cannot bear does not spoil the others.

        A batch that timed out stays whole: each part could take as long again.
        """
        last = batch.attempts + 1 == self._options[batch.tag].attempts
        if not last or isinstance(error, TimeoutError):
            return [batch]
        return [dataclasses.replace(batch, requests=[request]) for request in batch.requests]
