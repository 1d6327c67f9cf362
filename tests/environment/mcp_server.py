"""A Model Context Protocol server for tests: `mcp_server.py stdio`, or `… http PORT`."""

import asyncio
import contextlib
import os
import sys

from mcp.server.mcpserver import MCPServer
from mcp_types import EmbeddedResource, ImageContent, TextContent, TextResourceContents

server = MCPServer("tests", log_level="CRITICAL")


@server.tool()
def lookup(query: str, limit: int = 3) -> str:
    """Looks something up."""
    return f"{limit} found for {query}"


@server.tool()
def add(first: int, second: int) -> int:
    """Takes no text."""
    return first + second


@server.tool()
def join(left: str, right: str) -> str:
    """Takes two texts."""
    return left + right


@server.tool()
async def slow(seconds: str) -> str:
    """Takes its time."""
    await asyncio.sleep(float(seconds))
    return f"after {seconds}"


@server.tool()
def fragile(query: str) -> str:
    """Ends the server when it is told to: once, if a file is named that is then gone."""
    word, _, flag = query.partition(" ")
    if word == "die" and (not flag or os.path.exists(flag)):
        if flag:
            with contextlib.suppress(FileNotFoundError):  # of several calls at once
                os.remove(flag)
        print("the end is near, says", os.environ.get("TOKEN_OF_TESTS"), file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)
    if word == "fail":
        raise ValueError("as asked")
    return f"{os.getpid()}"


@server.tool()
def variable(name: str) -> str:
    """An environment variable of the server."""
    return os.environ.get(name, "(not set)")


@server.tool(structured_output=False)
def parts(query: str) -> list:
    """Parts of several kinds."""
    resource = TextResourceContents(uri="https://a.test/", text="of a resource")
    return [
        TextContent(type="text", text=query),
        ImageContent(type="image", data="AAAA", mime_type="image/png"),
        EmbeddedResource(type="resource", resource=resource),
    ]


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
