"""A session with a server of the Model Context Protocol, shared by all threads of a process.

The protocol's client of the package `mcp` is asynchronous: sessions live in one event loop, in a
thread of its own, and who calls waits for what comes back. A server may die and come back: a lost
connection is made anew, with pauses that double, and what was lost with it is asked once more.

Protocol: https://modelcontextprotocol.io/specification (tools: tools/list, tools/call).
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import random
import shlex
import shutil
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import mcp
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    REQUEST_TIMEOUT,
    CallToolResult,
    Tool,
)

from sr1_jax.http_exchange import pause_seconds, read_key, shown

KEY_OWNER = "the MCP server"
# Of what a server writes to stderr, the end is kept for messages, which quote so many characters.
_TAIL_LINES, _QUOTED = 20, 200
_CLOSE_SECONDS = 8.0


@dataclasses.dataclass(frozen=True)
class Server:
    """A server, and how it is reached.

    Attributes:
        command: program and arguments of one that is started here and spoken to over its standard
            input and output; empty: it is reached at `url`.
        url: of one that speaks streamable HTTP.
        folder: in which the command runs; "": the current one.
        variables: names of environment variables that the command gets, beside PATH, HOME and the
            like.
        key_variable: name of the environment variable whose value is sent to the url as bearer
            token; "": none.
        connect_seconds: until an attempt to connect is given up.
        connect_attempts: to connect, at first and after a connection was lost.
        backoff_seconds: before the second attempt; doubles, and varies.
        parallel: calls under way at a time.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    folder: str = ""
    variables: tuple[str, ...] = ()
    key_variable: str = ""
    connect_seconds: float = 30.0
    connect_attempts: int = 4
    backoff_seconds: float = 0.5
    parallel: int = 8

    def __str__(self) -> str:
        return self.url or shlex.join(self.command)

    def check(self) -> None:
        """Refuses a command that is not there, and variables that are not set.

        Raises:
            ValueError: saying which.
        """
        if self.folder and not Path(self.folder).is_dir():
            raise ValueError(f"folder={self.folder!r} is not there.")
        for name in self.variables:
            if name not in os.environ:
                raise ValueError(f"the environment variable {name} (variables) is not set.")
        read_key(self.key_variable, KEY_OWNER)
        if self.command and self._program() is None:
            raise ValueError(
                f"command={self.command[0]!r} is no program that can be run here: install it, or "
                "give its path."
            )

    def _program(self) -> str | None:
        name = self.command[0]
        # A path with folders in it is looked for where the command runs.
        return shutil.which(str(Path(self.folder, name)) if os.sep in name else name)

    def secrets(self) -> list[str]:
        """Values that no message may hold."""
        names = (*self.variables, self.key_variable)
        return [value for name in names if name and (value := os.environ.get(name, "").strip())]


class _Lost(NamedTuple):
    """What came of a call whose connection ended.

    Attributes:
        wrote: see `_Link.wrote`.
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
        self._link: _Link | None = None
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
            page = await link.client.list_tools(
                cursor=cursor, **({} if cursor else {"cache_mode": "refresh"})
            )
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

    async def _drop(self, link: _Link) -> None:
        """Forgets a link that was lost, unless another call has done so."""
        if self._link is link:
            self._link = None
            await link.close()

    async def _connected(self) -> _Link:
        async with self._connecting:
            if self._link is not None and self._link.ended:
                await self._drop(self._link)
            if self._link is None:
                self._link = await self._connect()
                self.connections += 1
            return self._link

    async def _connect(self) -> _Link:
        server, told = self._server, ""
        for again in range(server.connect_attempts):
            await asyncio.sleep(
                pause_seconds(again, server.backoff_seconds) * random.uniform(0.5, 1.0)
            )
            link = _Link(server)
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


class _Link:
    """One connection: from a handshake to its end."""

    def __init__(self, server: Server):
        self._server = server
        self._stop, self._tail = asyncio.Event(), _Tail()
        self._task: asyncio.Task | None = None
        self.client: mcp.Client | None = None
        self.ended = False

    async def open(self) -> None:
        """Connects; raises whatever is wrong."""
        _LINKS.add(self)
        ready: asyncio.Future = asyncio.get_running_loop().create_future()
        # The client has to be entered and left in one task; calls come from others.
        self._task = asyncio.ensure_future(self._keep(ready))
        try:
            self.client = await asyncio.wait_for(ready, self._server.connect_seconds)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the connection, and waits for it."""
        self._stop.set()
        if self._task is not None:
            if self.client is None:
                self._task.cancel()  # it has not come to wait for the end
            await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)
        self._tail.close()
        _LINKS.discard(self)

    def wrote(self) -> str:
        """What a message quotes of the end of what the server wrote to stderr."""
        text = self._tail.text()
        for secret in self._server.secrets():
            text = text.replace(secret, "…")
        if len(text) > _QUOTED:
            text = text[-_QUOTED:].partition("\n")[2] or text[-_QUOTED:]
        return f"; it wrote {shown(text)}" if text else ""

    async def _keep(self, ready: asyncio.Future) -> None:
        try:
            seconds = self._server.connect_seconds
            async with (
                self._transport() as transport,
                mcp.Client(transport, read_timeout_seconds=seconds) as client,
            ):
                if not ready.done():
                    ready.set_result(client)
                await self._stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(_root(error))
        finally:
            self.ended = True

    @contextlib.asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        server = self._server
        if server.command:
            environment = {name: os.environ[name] for name in server.variables}
            parameters = mcp.StdioServerParameters(
                command=server.command[0],
                args=list(server.command[1:]),
                env=environment or None,
                cwd=server.folder or None,
                encoding_error_handler="replace",
            )
            yield stdio_client(parameters, errlog=self._tail.file)
            return
        key = read_key(server.key_variable, KEY_OWNER)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # How long a call may take is the caller's to say.
        timeout = httpx2.Timeout(server.connect_seconds, read=None)
        async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http:
            yield streamable_http_client(server.url, http_client=http)


class _Tail:
    """A file to write to, of which the last lines are kept."""

    def __init__(self):
        self._lines: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        read, write = os.pipe()
        self.file = os.fdopen(write, "w")
        self._reader = threading.Thread(
            target=self._read, args=(read,), name="sr1_jax mcp stderr", daemon=True
        )
        self._reader.start()

    def _read(self, read: int) -> None:
        with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._lines.append(line[:1000])

    def text(self) -> str:
        return "".join(self._lines.copy()).strip()

    def close(self) -> None:
        """Waits a moment for what was written last."""
        self.file.close()
        self._reader.join(0.2)


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


def _root(error: BaseException) -> BaseException:
    """What groups of errors were raised for."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Exception):
        return error
    return ConnectionError(f"the connection was broken off ({error!r})")


def _said(error: Exception) -> str:
    if isinstance(error, mcp.MCPError) and error.code == CONNECTION_CLOSED:
        return "it ended"
    return f"{type(error).__name__}: {error}" if str(error) else repr(error)


# Links that are open, or being opened.
_LINKS: set[_Link] = set()


@atexit.register
def close_all() -> None:
    """Ends all sessions of this process, and the servers that were started for them."""
    for link in list(_LINKS):
        with contextlib.suppress(Exception):
            _run(link.close(), _CLOSE_SECONDS)
    session_of.cache_clear()
