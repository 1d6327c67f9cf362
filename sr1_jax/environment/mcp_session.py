"""A session with a server of the Model Context Protocol, shared by all threads of a process.

The protocol's client of the package `mcp` is asynchronous: sessions live in one event loop, in a
thread of its own, and who calls waits for what comes back. A server may die and come back: a lost
connection is made anew, with pauses that double, and what was lost with it is asked once more.

Protocol: https://modelcontextprotocol.io/specification (tools: tools/list, tools/call).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import httpx2
import mcp
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    REQUEST_TIMEOUT,
    CallToolResult,
    Tool,
)

from sr1_jax.environment.mcp_link import CLOSE_SECONDS, LINKS, Link, Server
from sr1_jax.http_exchange import pause_seconds


class _Lost(NamedTuple):
    """What came of a call whose connection ended.

    Attributes:
        wrote: see `Link.wrote`.
    """

    wrote: str


class Session:
    """A session with a server; methods may be called from several threads at once.

    Args:
        server: is connected to on first use.

    Attributes:
        connections: that were made.
    """

    def __init__(self, server: Server):
        self._server = server
        self._link: Link | None = None
        self._connecting, self._alone = asyncio.Lock(), asyncio.Lock()
        self._free = asyncio.Semaphore(server.parallel)
        self.connections = 0

    def tools(self) -> list[Tool]:
        """The tools that the server has.

        Raises:
            ConnectionError: it cannot be reached; says what it wrote before it ended.
        """
        return _run(self._tools())

    def call(
        self, name: str, arguments: Sequence[Mapping[str, Any]], timeout_seconds: float
    ) -> list[CallToolResult | mcp.MCPError]:
        """Calls a tool once for each set of arguments, several at a time.

        Args:
            name: of the tool.
            arguments: of each call.
            timeout_seconds: for all of them.

        Returns:
            What came back of each: a result, which may be an error of the tool's own, or the error
            with which the server refused the call.

        Raises:
            ConnectionError: the server cannot be reached, fails, or ended twice during a call.
            TimeoutError: not all calls were answered in time.
        """
        return _run(self._call_all(name, arguments, timeout_seconds), timeout_seconds)

    async def _tools(self) -> list[Tool]:
        link = await self._connected()
        found: list[Tool] = []
        cursor = None
        while True:
            page = await link.client.list_tools(cursor=cursor, cache_mode="refresh")
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                return found

    async def _call_all(
        self, name: str, arguments: Sequence[Mapping[str, Any]], seconds: float
    ) -> list[CallToolResult | mcp.MCPError]:
        calls = [asyncio.ensure_future(self._call(name, given, seconds)) for given in arguments]
        try:
            return list(await asyncio.gather(*calls))
        except BaseException:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            raise

    async def _call(
        self, name: str, arguments: Mapping[str, Any], seconds: float
    ) -> CallToolResult | mcp.MCPError:
        async with self._free:
            result = await self._try(name, arguments, seconds)
        if not isinstance(result, _Lost):
            return result
        # Once more, with nothing beside it: what ends a server takes others with it once at most.
        async with self._alone, contextlib.AsyncExitStack() as stack:
            for _ in range(self._server.parallel):
                await stack.enter_async_context(self._free)
            result = await self._try(name, arguments, seconds)
        if not isinstance(result, _Lost):
            return result
        raise ConnectionError(
            f"the MCP server {self._server} ended during a call, twice{result.wrote}"
        )

    async def _try(
        self, name: str, arguments: Mapping[str, Any], seconds: float
    ) -> CallToolResult | mcp.MCPError | _Lost:
        link = await self._connected()
        try:
            return await link.client.call_tool(name, dict(arguments), read_timeout_seconds=seconds)
        except mcp.MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise TimeoutError(f"no answer within {seconds:g} seconds") from error
            # Of a server over HTTP that was started anew the second one: it knows no such session.
            lost = link.ended or error.code in (CONNECTION_CLOSED, INVALID_REQUEST)
            if not lost and error.code == INTERNAL_ERROR:
                raise ConnectionError(f"the MCP server {self._server} failed: {error}") from error
            if not lost:
                return error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx2.HTTPError):
            pass
        await self._drop(link)
        return _Lost(link.wrote())

    async def _drop(self, link: Link) -> None:
        """Forgets a link that was lost, unless another call has done so."""
        if self._link is link:
            self._link = None
            await link.close()

    async def _connected(self) -> Link:
        async with self._connecting:
            if self._link is not None and self._link.ended:
                await self._drop(self._link)
            if self._link is None:
                self._link = await self._connect()
                self.connections += 1
            return self._link

    async def _connect(self) -> Link:
        server, told = self._server, ""
        for again in range(server.connect_attempts):
            await asyncio.sleep(
                pause_seconds(again, server.backoff_seconds) * random.uniform(0.5, 1.0)
            )
            link = Link(server)
            try:
                await link.open()
                return link
            except TimeoutError:
                told = f"no answer within {server.connect_seconds:g} seconds{link.wrote()}"
            except Exception as error:
                told = f"{_said(error)}{link.wrote()}"
        raise ConnectionError(
            f"no connection to the MCP server {server} in {server.connect_attempts} attempts; the "
            f"last: {told}"
        )


@functools.cache
def session_of(server: Server) -> Session:
    """The session of this process with a server: one, whoever asks."""
    return Session(server)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all sessions, which runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sr1_jax mcp", daemon=True).start()
    return loop


def _run(work: Any, seconds: float | None = None) -> Any:
    """Waits for what is done in the loop of sessions, for so many seconds at most."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None


def _said(error: Exception) -> str:
    if isinstance(error, mcp.MCPError) and error.code == CONNECTION_CLOSED:
        return "it ended"
    return f"{type(error).__name__}: {error}" if str(error) else repr(error)


@atexit.register
def close_all() -> None:
    """Ends all sessions of this process, and the servers that were started for them."""
    for link in list(LINKS):
        with contextlib.suppress(Exception):
            _run(link.close(), CLOSE_SECONDS)
    session_of.cache_clear()
