"""Search of the web: a client of an API that speaks as Brave's does (see `web_wire`).

Each query is a request, and requests cost money. So they are counted before they are sent, what has
been found is not asked for again while it is among the latest results (a batch that failed is asked
whole again, and the samples of a question ask alike), and there is a limit, after which the run
ends, or finds nothing more.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from sr1_jax.http_exchange import Fault, Reply, may_pass, read_key, shown
from sr1_jax.paths import disk_path
from sr1_jax.retrieval.attempts import Addresses, GivenUpError
from sr1_jax.retrieval.base import EndsRunError, Passage, Unanswered, check_search
from sr1_jax.retrieval.http_retriever import SearchFailedError
from sr1_jax.retrieval.quota import Quota
from sr1_jax.retrieval.web_wire import (
    KEY_HEADER,
    MOST_RESULTS,
    fitted,
    is_cut,
    passages_of,
    query_string,
    wait_seconds,
)

KEY_OWNER = "the web search"  # of retrieval.web.key_variable
# A server that asks to wait longer has no quota left; shorter, it is asked again.
_MOST_WAIT_SECONDS = 30.0
# Results that are kept, the latest; of a few kilobytes each.
_KEPT = 10_000


class UsedUpError(EndsRunError):
    """There may be no more requests: the run's own limit is reached, or the plan's quota."""


class WebRetriever:
    """Asks a web search; `search` may run in several threads at once.

    Args:
        url: of the API, without a query.
        key: of the API; in no message or log.
        options: parameters of every request.
        quota: of requests.
        timeout_seconds: of an attempt: for its first byte, and again for its last.
        attempts: of a query.
        backoff_seconds: the pause before the second; see `Addresses`.
        connections: requests under way at a time.
        requests_per_second: that are sent at most; None: no limit.
        when_used_up: "stop": `UsedUpError` is raised; "empty": queries are `Unanswered`.
        cost_per_request: that is counted for each request that the provider may have billed: all
            but those that nobody took, or that were answered with a status of an error.

    Attributes:
        fingerprint: of the address and the options. What is found there changes all the same.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        options: Mapping[str, str] | None = None,
        quota: Quota | None = None,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
        backoff_seconds: float = 0.5,
        connections: int = 8,
        requests_per_second: float | None = None,
        when_used_up: str = "stop",
        cost_per_request: float = 0.0,
    ):
        self._url, self._key = url, key
        self._options = dict(options or {})
        self._quota = quota or Quota(None)
        self._addresses = Addresses(
            [url],
            headers={"Accept": "application/json", KEY_HEADER: key},
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            backoff_seconds=backoff_seconds,
            connections=connections,
        )
        self._free = threading.Semaphore(connections)
        self._pace = _Pace(requests_per_second)
        self._when_used_up, self._cost_per_request = when_used_up, cost_per_request
        self._used_up = ""  # why there may be no more requests
        self._found: collections.OrderedDict[tuple[str, int], Future] = collections.OrderedDict()
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        told = json.dumps(["web", url, sorted(self._options.items())])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()

    def counts(self) -> dict[str, float]:
        """Totals since it was opened.

        Requests sent (web_requests), those of them that failed by what was wrong (web_status,
        _timeout, _broken, _refused, _malformed), queries answered by them or given up
        (web_queries), given up (web_given_up), not asked because requests are used up
        (web_unanswered), answered from what was found before (web_known) and cut because they were
        too long (web_cut_queries); and with a price, what was spent (web_cost).
        """
        counts = self._addresses.counts()
        told = {
            "requests": counts.pop("attempts", 0),
            "queries": counts.pop("requests", 0),
            **counts,
        }
        with self._lock:
            told |= self._counts
        if self._cost_per_request:
            unbilled = counts["refused"] + counts["status"]
            told["cost"] = (told["requests"] - unbilled) * self._cost_per_request
        return {f"web_{key}": float(value) for key, value in told.items()}

    def told_at_end(self) -> str:
        """What a run spent, for people."""
        counts = collections.Counter(self.counts())
        told = f"Web search: {counts['web_requests']:,.0f} requests"
        if self._quota.most is not None:
            told += f", {self._quota.used:,} of {self._quota.most:,} allowed"
        if counts["web_known"]:
            told += f"; {counts['web_known']:,.0f} queries had been asked before"
        for name, words in (("given_up", "were given up"), ("unanswered", "were not asked")):
            if count := counts[f"web_{name}"]:
                told += f"; {count:,.0f} queries {words}"
        if self._cost_per_request:
            told += f"; cost: {counts['web_cost']:,.2f} at {self._cost_per_request:g} a request"
        return f"{told}."

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`. A blank query finds nothing, and is not asked.

        Raises:
            SearchFailedError: a query was not answered; the others are asked all the same, and
                what they found is kept.
            UsedUpError: there may be no more requests, and the run is to stop for it.
            ValueError: `k` is more than the provider gives.
        """
        check_search(queries, k)
        if k > MOST_RESULTS:
            raise ValueError(
                f"retrieval.kind='web' finds at most {MOST_RESULTS} passages a query, not {k}."
            )
        asked = [self._ask(fitted(query), k) for query in queries]
        with self._lock:
            self._counts["cut_queries"] += sum(map(is_cut, queries))
        for error in [future and future.exception() for future in asked]:
            if isinstance(error, UsedUpError):
                self._unanswered(error)
            elif error is not None:
                raise error
        return [
            [] if future is None else Unanswered() if future.exception() else list(future.result())
            for future in asked
        ]

    def connect(self) -> None:
        """Asks one query: a wrong address or key shows before anything expensive.

        Raises:
            ConnectionError: the API does not answer, or refuses the key; says what came back.
            UsedUpError: there may be no request, and the run is to stop for it.
        """
        try:
            self.search(["search"], 1)
        except SearchFailedError as error:
            raise ConnectionError(
                f"{error}. See retrieval.web.url, and the key in retrieval.web.key_variable."
            ) from error

    def _ask(self, query: str, k: int) -> Future | None:
        """The answer to a query, which may still be on its way, of this call or of another; None to
        a blank one."""
        if not query:
            return None
        with self._lock:
            future = self._found.get((query, k))
            if future is not None:
                self._found.move_to_end((query, k))
                self._counts["known"] += 1
                return future
            future = self._found[query, k] = Future()
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        # A daemon: one that hangs must not keep the process from ending.
        threading.Thread(
            target=self._answer, args=(future, query, k), name="sr1_jax web", daemon=True
        ).start()
        return future

    def _answer(self, future: Future, query: str, k: int) -> None:
        try:
            with self._free:
                passages = self._request(query, k)
        except Exception as error:  # for whoever waits to judge
            with self._lock:
                if self._found.get((query, k)) is future:
                    del self._found[query, k]
            future.set_exception(error)
        else:
            future.set_result(passages)

    def _request(self, query: str, k: int) -> list[Passage]:
        try:
            return self._addresses.ask(
                "GET",
                lambda reply: self._read(reply, k),
                query=query_string(query, k, self._options),
                before=self._before_attempt,
            )
        except GivenUpError as error:
            if self._used_up:
                raise UsedUpError(self._used_up) from None
            raise SearchFailedError(
                f"the web search at {self._url} did not answer in {error.attempts} attempts; the "
                f"last: {error.fault.message}"
            ) from error.fault

    def _before_attempt(self) -> None:
        if not self._used_up and not self._quota.take():
            self._used_up = (
                f"the {self._quota.most:,} requests of retrieval.web.max_requests are used up"
            )
        if self._used_up:
            raise UsedUpError(self._used_up)
        self._pace.wait()

    def _read(self, reply: Reply, k: int) -> list[Passage]:
        """The passages of a reply; raises Fault if there are none to be had."""
        if reply.status == 200:
            try:
                return passages_of(reply.body, k, key=self._key)
            except ValueError as error:
                raise Fault("malformed", str(error)) from error
        told = f"status {reply.status}: {shown(reply.body, self._key)}"
        wait = wait_seconds(reply.headers) if reply.status in (429, 503) else 0.0
        if reply.status == 402 or (reply.status == 429 and wait > _MOST_WAIT_SECONDS):
            self._used_up = f"the plan's quota at {self._url} is used up ({told})"
            if wait:
                self._used_up += f"; it begins anew in {wait / 3600:.1f} hours"
            raise Fault("status", told, again=False)
        raise Fault("status", told, may_pass(reply.status), min(wait, _MOST_WAIT_SECONDS))

    def _unanswered(self, error: UsedUpError) -> None:
        """Counts a query that was not asked, or ends the run for it."""
        if self._when_used_up == "stop":
            raise UsedUpError(
                f"{error}. {self.told_at_end()} Raise the limit and start the run again, or go on "
                "without: retrieval.web.when_used_up='empty'."
            ) from error
        with self._lock:
            first = not self._counts["unanswered"]
            self._counts["unanswered"] += 1
        if first:
            logging.getLogger(__name__).warning(
                "%s; from now on searches of what was not found before find nothing.", error
            )


class _Pace:
    """Lets so many pass a second, one after the other."""

    def __init__(self, per_second: float | None):
        self._between = 1.0 / per_second if per_second else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._between
        time.sleep(mine - now)


def check_web(config: Mapping[str, Any]) -> str:
    """The key of retrieval.web.key_variable.

    Raises:
        ValueError: the environment variable is not set; says its name.
    """
    try:
        return read_key(config["web"]["key_variable"], KEY_OWNER)
    except ValueError as error:
        raise ValueError(f"web.key_variable: {error}") from error


def open_web(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> WebRetriever:
    """The retriever of retrieval.kind="web", which has asked one query.

    Args:
        config: the section `retrieval` of the settings.
        corpus: not read.
        index: not read.

    Raises:
        ValueError: the key is not there, or the ledger is none.
        ConnectionError: the API does not answer, or refuses the key.
        UsedUpError: its requests are used up.
        OSError: the ledger cannot be written to.
    """
    web = config["web"]
    options = {
        "country": web["country"],
        "search_lang": web["language"],
        "safesearch": web["safe_search"],
        "extra_snippets": "true" if web["extra_snippets"] else "",
    }
    retriever = WebRetriever(
        web["url"],
        check_web(config),
        options=options,
        quota=Quota(_share(web), _ledger(web["ledger"])),
        timeout_seconds=web["timeout_seconds"],
        attempts=web["attempts"],
        backoff_seconds=web["backoff_seconds"],
        connections=web["connections"],
        requests_per_second=web["requests_per_second"],
        when_used_up=web["when_used_up"],
        cost_per_request=web["cost_per_request"],
    )
    retriever.connect()
    return retriever


def _ledger(text: str) -> Path | None:
    return disk_path(text, "retrieval.web.ledger") if text else None


def _share(web: Mapping[str, Any]) -> int | None:
    """The requests that this process may send; with a ledger, all of them together."""
    most = web["max_requests"]
    # Without JAX there is no cluster, and it need not be imported to know.
    if most is None or web["ledger"] or "jax" not in sys.modules:
        return most
    from sr1_jax import cluster

    processes = cluster.processes()
    if most < processes:
        raise ValueError(
            f"retrieval.web.max_requests={most} does not suffice for {processes} processes: each "
            "sends one to begin with."
        )
    return most // processes
