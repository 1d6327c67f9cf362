"""A retriever as a web service: an ASGI application that speaks `/retrieve` (see `wire`).

    POST /retrieve       passages for queries
    GET  /health         which index is searched; without a token too
    GET  /metrics        for Prometheus
    GET  /openapi.json   all of this for machines

Whatever goes wrong is answered with {"error": "what is wrong"}. Searches run in a bounded number of
threads; when too many requests wait for one, the next are told to come back (503).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.open import fingerprint_of
from sr1_jax.retrieval.server_metrics import ServerMetrics
from sr1_jax.retrieval.server_schema import openapi, request_model
from sr1_jax.retrieval.wire import response_body

_LOG = logging.getLogger(__name__)
_RETRY_AFTER_SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask.

    Attributes:
        queries: in a request.
        topk: passages a query.
        query_characters: of a query.
        body_bytes: of a request.
        body_seconds: until all of it has to be there.
        threads: searches at a time.
        waiting: requests that wait for a thread.
    """

    # Search-R1 sends all queries of a turn at once; its script for GRPO has 512 groups of five.
    queries: int = 4096
    topk: int = 100
    query_characters: int = 1 << 15
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    threads: int = 4
    waiting: int = 256


def make_app(
    retriever: Retriever,
    limits: Limits = Limits(),
    *,
    topk: int = 3,
    token: str = "",
) -> Starlette:
    """The application.

    Args:
        retriever: of any kind.
        limits: on requests.
        topk: passages a query, where a request does not say.
        token: that requests must bear; "": none.
    """
    service = _Service(retriever, limits, topk, token)
    return Starlette(
        routes=[
            Route("/retrieve", service.guarded(service.retrieve), methods=["POST"]),
            Route("/health", service.health, methods=["GET"]),
            Route("/metrics", service.guarded(service.metrics), methods=["GET"]),
            Route("/openapi.json", service.schema, methods=["GET"]),
        ],
        exception_handlers={HTTPException: service.refused, Exception: service.failed},
    )


class _Service:
    """The endpoints; arguments as of `make_app`."""

    def __init__(self, retriever: Retriever, limits: Limits, topk: int, token: str):
        self._retriever, self._limits, self._topk = retriever, limits, topk
        self._token = token.encode()
        self._model = request_model(limits)
        self._metrics = ServerMetrics(retriever)
        self._threads = anyio.CapacityLimiter(limits.threads)
        self._under_way = 0

    def guarded(
        self, endpoint: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that asks for the token."""

        async def guard(request: Request) -> Response:
            if self._token:
                scheme, _, given = request.headers.get("authorization", "").partition(" ")
                same = hmac.compare_digest(given.strip().encode(), self._token)
                if scheme.lower() != "bearer" or not same:
                    raise HTTPException(
                        401,
                        "the bearer token is missing or wrong",
                        headers={"WWW-Authenticate": "Bearer"},
                    )
            return await endpoint(request)

        return guard

    async def retrieve(self, request: Request) -> Response:
        began = time.perf_counter()
        if self._under_way >= self._limits.threads + self._limits.waiting:
            raise HTTPException(
                503,
                f"{self._under_way} requests are under way; come back later",
                headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
            )
        self._under_way += 1
        try:
            asked = self._asked(await self._body(request))
            # Searching and writing JSON take a processor: the event loop stays free.
            body = await anyio.to_thread.run_sync(self._answer, asked, limiter=self._threads)
        finally:
            self._under_way -= 1
        self._metrics.answered("/retrieve", 200)
        self._metrics.searched(len(asked.queries), time.perf_counter() - began)
        return Response(body, media_type="application/json")

    async def health(self, request: Request) -> Response:
        """Answers at once, however busy the threads are."""
        told: dict[str, Any] = {
            "status": "ok",
            "fingerprint": fingerprint_of(self._retriever),
            "requests_under_way": self._under_way,
        }
        return _json(told)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type=self._metrics.media_type)

    async def schema(self, request: Request) -> Response:
        return _json(openapi(self._model, self._limits, self._topk, token=bool(self._token)))

    async def refused(self, request: Request, error: Exception) -> Response:
        """What is wrong with a request."""
        assert isinstance(error, HTTPException)
        self._metrics.answered(request.url.path, error.status_code)
        return _json({"error": error.detail}, error.status_code, error.headers)

    async def failed(self, request: Request, error: Exception) -> Response:
        """What is wrong with us; the server's log has the traceback too."""
        self._metrics.answered(request.url.path, 500)
        return _json({"error": f"the search failed: {error!r}"}, 500)

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise HTTPException(413, f"the body has more than {most} bytes")
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise HTTPException(408, f"the body was not there within {seconds:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client left") from None
        return b"".join(parts)

    def _asked(self, body: bytes) -> Any:
        try:
            return self._model.model_validate_json(body)
        except pydantic.ValidationError as error:
            faults = error.errors(include_url=False, include_context=False, include_input=False)
            told = [
                ": ".join([*filter(None, [".".join(map(str, fault["loc"]))]), fault["msg"]])
                for fault in faults[:3]
            ]
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise HTTPException(422, "; ".join(told) + more) from None

    def _answer(self, asked: Any) -> bytes:
        # As in the original, 0 and null stand for the default.
        k = asked.topk or self._topk
        results = self._retriever.search(asked.queries, k) if asked.queries else []
        if len(results) != len(asked.queries):
            raise RuntimeError(f"{len(results)} results for {len(asked.queries)} queries")
        return response_body(results, return_scores=asked.return_scores)


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    # ASCII: what is told of a request may have no UTF-8.
    body = json.dumps(value).encode("ascii")
    return Response(body, status, headers, media_type="application/json")
