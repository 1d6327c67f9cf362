"""One connection to a server of the Model Context Protocol: its command or address, and its end.

All of it but `Server` lives in the event loop of `mcp_session`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import shlex
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import mcp
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from sr1_jax.http_exchange import read_key, shown

KEY_OWNER = "the MCP server"
# To wait for a server to end.
CLOSE_SECONDS = 8.0
# Of what a server writes to stderr, the end is kept for messages, which quote so many characters.
_TAIL_LINES, _QUOTED = 20, 200


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


class Link:
    """One connection: from a handshake to its end."""

    def __init__(self, server: Server):
        self._server = server
        self._stop, self._tail = asyncio.Event(), _Tail()
        self._task: asyncio.Task | None = None
        self.client: mcp.Client | None = None
        self.ended = False

    async def open(self) -> None:
        """Connects; raises whatever is wrong."""
        LINKS.add(self)
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
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        self._tail.close()
        LINKS.discard(self)

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


def _root(error: BaseException) -> BaseException:
    """What groups of errors were raised for."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Exception):
        return error
    return ConnectionError(f"the connection was broken off ({error!r})")


# Links that are open, or being opened.
LINKS: set[Link] = set()
