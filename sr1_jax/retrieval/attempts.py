"""Requests to servers that may fail: asked again after a pause, or elsewhere, and counted.

A request asks one address after the other until one answers: those that failed a moment ago come
last, and before an address is asked again there is a pause, which doubles.
"""

from __future__ import annotations

import collections
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import urllib3

from sr1_jax.http_exchange import Fault, Reply, exchange, pause_seconds

# An address that failed is asked last for so long.
_REST_SECONDS = 10.0

_T = TypeVar("_T")


class GivenUpError(Exception):
    """No address gave an answer that can be used.

    Attributes:
        attempts: that were made.
        url: of the last one.
        fault: what was wrong with it.
    """

    def __init__(self, attempts: int, url: str, fault: Fault):
        super().__init__(f"{attempts} attempts failed; the last, {url}: {fault.message}")
        self.attempts, self.url, self.fault = attempts, url, fault


class Addresses:
    """Addresses that stand in for each other; may be asked from several threads at once.

    Args:
        urls: in full, without a query.
        headers: of every request.
        timeout_seconds: of an attempt: for its first byte, and again for its last.
        attempts: of a request, over all addresses together.
        backoff_seconds: the pause before an address is asked for the second time; doubles, and
            is shortened by up to a half, at random, so that clients do not come back together.
            Where a server asks to wait longer, that is done.
        connections: that are kept open for each server.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        headers: Mapping[str, str],
        timeout_seconds: float,
        attempts: int,
        backoff_seconds: float,
        connections: int,
    ):
        self.urls = tuple(urls)
        self.attempts = attempts
        self._headers = dict(headers)
        self._timeout_seconds = timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._connections = urllib3.PoolManager(
            num_pools=len(self.urls), maxsize=connections, retries=False
        )
        self._turn = itertools.count()
        self._rests_until = dict.fromkeys(self.urls, 0.0)
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    @property
    def bound_seconds(self) -> float:
        """A request that no address answers, nor asks to wait, fails within this time.

        Servers that drip may take twice as long: within an attempt the first byte and the last one
        each have `timeout_seconds`.
        """
        pauses = (self.pause(again) for again in range(1, self.attempts))
        return self.attempts * self._timeout_seconds + sum(pauses)

    def counts(self) -> collections.Counter[str]:
        """Requests answered or given up, attempts, and attempts that failed, by what was wrong."""
        with self._lock:
            return self._counts.copy()

    def pause(self, again: int) -> float:
        """Most seconds before an address is asked again for the so-manyth time."""
        return pause_seconds(again, self._backoff_seconds)

    def exchange(self, method: str, url: str, body: bytes | None = None) -> Reply:
        """Asks once; see `exchange`. Nothing is counted."""
        return exchange(
            self._connections,
            method,
            url,
            headers=self._headers,
            timeout_seconds=self._timeout_seconds,
            body=body,
        )

    def ask(
        self,
        method: str,
        read: Callable[[Reply], _T],
        *,
        body: bytes | None = None,
        query: str = "",
        before: Callable[[], None] = lambda: None,
    ) -> _T:
        """One request, on as many addresses and as often as need be.

        Args:
            method: of HTTP.
            read: makes of a reply what is returned; raises `Fault` if it cannot be used.
            body: of the request.
            query: put behind the address, with its "?".
            before: called before each attempt; what it raises ends the request.

        Raises:
            GivenUpError: all attempts failed, or none may be made again.
        """
        tried: collections.Counter[str] = collections.Counter()
        faults: dict[str, Fault] = {}
        url, fault = "", Fault("none", "")
        for _ in range(self.attempts):
            left = [url for url in self.urls if url not in faults or faults[url].again]
            if not left:
                break
            url = self._next(left, tried)
            if tried[url]:
                pause = self.pause(tried[url]) * random.uniform(0.5, 1.0)
                time.sleep(max(pause, faults[url].wait_seconds))
            before()
            tried[url] += 1
            try:
                found = self._attempt(method, url, query, body, read)
            except Fault as error:
                faults[url] = fault = error
                self._failed(url, fault)
                continue
            self._ended(url)
            return found
        self._ended(None)
        raise GivenUpError(sum(tried.values()), url, fault)

    def _attempt(
        self, method: str, url: str, query: str, body: bytes | None, read: Callable[[Reply], _T]
    ) -> _T:
        with self._lock:
            self._counts["attempts"] += 1
        return read(self.exchange(method, url + query, body))

    def _next(self, urls: Sequence[str], tried: Mapping[str, int]) -> str:
        """Of some addresses the one to ask: least tried in this call, not resting, in turn."""
        with self._lock:
            turn, now = next(self._turn), time.monotonic()
            rests = {url: max(0.0, self._rests_until[url] - now) for url in urls}
        start = turn % len(urls)
        in_turn = [*urls[start:], *urls[:start]]
        return min(in_turn, key=lambda url: (tried.get(url, 0), rests[url]))

    def _failed(self, url: str, fault: Fault) -> None:
        with self._lock:
            self._rests_until[url] = time.monotonic() + _REST_SECONDS
            self._counts[fault.kind] += 1

    def _ended(self, url: str | None) -> None:
        """Counts a request that an address answered, or none."""
        with self._lock:
            self._counts["requests"] += 1
            if url is None:
                self._counts["given_up"] += 1
            else:
                self._rests_until[url] = 0.0
