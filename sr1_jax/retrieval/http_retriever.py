"""Retrieval over HTTP: a client of any server that speaks `/retrieve` (see `wire`).

How servers are asked again, or stand in for each other, is told in `attempts`. A request ends
within `bound_seconds`, whatever they do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from sr1_jax.http_exchange import Fault, can_be_sent, may_pass, shown
from sr1_jax.paths import local_path
from sr1_jax.retrieval.attempts import Addresses, GivenUpError
from sr1_jax.retrieval.base import Passage, check_search
from sr1_jax.retrieval.wire import addresses, request_body, results_of

TOKEN_VARIABLE = "SR1_JAX_RETRIEVAL_TOKEN"


class SearchFailedError(RuntimeError):
    """No address gave an answer that can be used."""


class HttpRetriever:
    """Asks servers for passages; `search` may run in several threads at once.

    Args:
        urls: full addresses, asked in turn.
        timeout_seconds: of an attempt.
        attempts: of a request, over all addresses together.
        backoff_seconds: the pause before an address is asked for the second time; doubles, and
            is shortened by up to a half, at random, so that clients do not come back together.
        queries: that one request holds at most; of more, several are made.
        connections: that are kept open for each server.
        token: for the header Authorization.

    Attributes:
        fingerprint: of what the servers search, where `connect` was told; else "".
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
        backoff_seconds: float = 0.25,
        queries: int = 256,
        connections: int = 16,
        token: str = "",
    ):
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._addresses = Addresses(
            urls,
            headers=headers,
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            backoff_seconds=backoff_seconds,
            connections=connections,
        )
        self._queries = queries
        self.fingerprint = ""

    @property
    def bound_seconds(self) -> float:
        """See `Addresses.bound_seconds`."""
        return self._addresses.bound_seconds

    def counts(self) -> dict[str, float]:
        """See `Addresses.counts`."""
        return {f"http_{key}": float(n) for key, n in self._addresses.counts().items()}

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """See `Retriever.search`.

        Raises:
            SearchFailedError: no address gave an answer that can be used; names the last one and
                what came back.
        """
        check_search(queries, k)
        found: list[list[Passage]] = []
        for start in range(0, len(queries), self._queries):
            found += self._request(queries[start : start + self._queries], k)
        return found

    def connect(self) -> None:
        """Asks the servers what they search, sets `fingerprint`, and has each answer one query.

        A server without `/health`, such as the original's, says nothing and is taken as it is.

        Raises:
            ConnectionError: no server answers, or one wants another token, has nothing at this
                path, or answers in another form.
            ValueError: the servers search different indices.
        """
        faults: dict[str, Fault] = {}
        fingerprints: dict[str, str] = {}
        for again in range(self._addresses.attempts):
            time.sleep(self._addresses.pause(again))
            for url in self._addresses.urls:
                try:
                    fingerprint = self._fingerprint_of(url)
                    self._try(url)
                    fingerprints[url] = fingerprint
                except Fault as fault:
                    if not fault.again or fault.kind == "malformed":
                        raise ConnectionError(
                            f"{url} does not answer a query: {fault.message}. "
                            "See docs/serving.md for the form, and retrieval.http.urls."
                        ) from fault
                    faults[url] = fault
            if fingerprints:
                break
        else:
            told = "; ".join(f"{url}: {fault.message}" for url, fault in faults.items())
            raise ConnectionError(f"No server of retrieval.http.urls answers: {told}")
        if len(set(fingerprints.values())) > 1:
            told = ", ".join(f"{url}: {value[:12]!r}" for url, value in fingerprints.items())
            raise ValueError(f"The servers of retrieval.http.urls search different indices: {told}")
        (self.fingerprint,) = set(fingerprints.values())

    def _fingerprint_of(self, url: str) -> str:
        status, _, body = self._addresses.exchange("GET", urljoin(url, "health"))
        _check_token(url, status, body)
        if status >= 500:
            raise Fault("status", f"status {status}: {shown(body)}")
        try:
            told = json.loads(body)
        except ValueError:
            return ""
        return str(told.get("fingerprint", "")) if isinstance(told, Mapping) else ""

    def _try(self, url: str) -> None:
        """A query of one word: a wrong path or token shows before anything expensive."""
        status, _, answer = self._addresses.exchange("POST", url, request_body(["search"], 1))
        _check_token(url, status, answer)
        _found(status, answer, 1, 1)

    def _request(self, queries: list[str], k: int) -> list[list[Passage]]:
        """The passages for as many queries as one request holds."""
        try:
            return self._addresses.ask(
                "POST",
                lambda reply: _found(reply.status, reply.body, len(queries), k),
                body=request_body(queries, k),
            )
        except GivenUpError as error:
            raise SearchFailedError(
                f"{len(queries)} queries were not answered in {error.attempts} attempts on "
                f"{len(self._addresses.urls)} addresses; the last, {error.url}: "
                f"{error.fault.message}"
            ) from error.fault


def _found(status: int, answer: bytes, queries: int, k: int) -> list[list[Passage]]:
    """What a reply to so many queries says; raises Fault if it cannot be used."""
    if status != 200:
        raise Fault("status", f"status {status}: {shown(answer)}", may_pass(status))
    try:
        return results_of(answer, queries, k)
    except ValueError as error:
        raise Fault("malformed", str(error)) from error


def _check_token(url: str, status: int, answer: bytes) -> None:
    """Raises ConnectionError if a server wants another token."""
    if status in (401, 403):
        raise ConnectionError(
            f"{url} refuses the token (status {status}): {shown(answer)}. Give the right one in "
            f"the file retrieval.http.token_file, or in {TOKEN_VARIABLE}."
        )


def open_http(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> HttpRetriever:
    """The retriever of retrieval.kind="http", connected.

    Args:
        config: the section `retrieval` of the settings.
        corpus: not read; the servers have theirs.
        index: not read.

    Raises:
        ValueError: addresses that are none, or of servers that search different indices.
        ConnectionError: no server answers.
        OSError: the file of the token cannot be read.
    """
    http = config["http"]
    retriever = HttpRetriever(
        check_http(config),
        timeout_seconds=http["timeout_seconds"],
        attempts=http["attempts"],
        backoff_seconds=http["backoff_seconds"],
        queries=http["queries"],
        connections=http["connections"],
        token=read_token(http["token_file"], "retrieval.http.token_file"),
    )
    retriever.connect()
    return retriever


def check_http(config: Mapping[str, Any]) -> list[str]:
    """The addresses of retrieval.http.urls.

    Raises:
        ValueError: there is none, or one is no address.
    """
    try:
        return addresses(config["http"]["urls"])
    except ValueError as error:
        raise ValueError(f"http.urls: {error}") from error


def read_token(file: str, key: str, variable: str = TOKEN_VARIABLE) -> str:
    """The bearer token: the contents of a file, else of an environment variable, else "".

    Args:
        file: its path, or "".
        key: of the setting or flag, for messages.
        variable: name of the environment variable.

    Raises:
        OSError: there is no such file.
        ValueError: what is there can be no token.
    """
    if not file:
        token, where = os.environ.get(variable, "").strip(), variable
    else:
        path = local_path(file, key)
        token, where = path.read_text(encoding="utf-8").strip(), f"{key}={file}"
        if not token:
            raise ValueError(f"{where}: the file is empty; write the token into it.")
    if not can_be_sent(token):
        raise ValueError(f"{where}: a token is printable ASCII without spaces.")
    return token
