"""One exchange over HTTP, bounded in time, and what can be wrong with it.

What clients of servers have in common; which of them asks whom, and how often, is theirs.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import urllib3

_CHUNK_BYTES = 1 << 16
_MOST_PAUSE_SECONDS = 30.0
# Of a text from elsewhere that a message quotes.
_SHOWN_CHARACTERS = 200


@dataclasses.dataclass(eq=False)
class Fault(Exception):
    """What was wrong with one attempt.

    Attributes:
        kind: refused, timeout, broken (the connection ended early), status, malformed.
        message: what came back.
        again: whether the same address may be asked again.
        wait_seconds: what the server asks to wait before.
    """

    kind: str
    message: str
    again: bool = True
    wait_seconds: float = 0.0


class Reply(NamedTuple):
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def exchange(
    connections: urllib3.PoolManager,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    timeout_seconds: float,
    body: bytes | None = None,
) -> Reply:
    """Asks once; redirects are not followed, so a token stays with the address it is for.

    Args:
        connections: that are kept open; must not retry by itself.
        method: of HTTP.
        url: full address.
        headers: of the request.
        timeout_seconds: within which the first byte comes, and after that the last one.
        body: of the request.

    Raises:
        Fault: there is no answer, or not all of it.
    """
    deadline = time.monotonic() + timeout_seconds
    response = None
    try:
        response = connections.request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(total=timeout_seconds),
            redirect=False,
            preload_content=False,
        )
        chunks = []
        # One read of the socket at a time: a server that drips is not waited for.
        while chunk := response.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            if time.monotonic() > deadline:
                raise urllib3.exceptions.TimeoutError
        reply = Reply(response.status, response.headers, b"".join(chunks))
        response.release_conn()
        return reply
    except urllib3.exceptions.NewConnectionError as error:
        raise Fault("refused", f"no connection ({error})") from error
    except urllib3.exceptions.TimeoutError as error:
        raise Fault("timeout", f"no answer within {timeout_seconds:g} seconds") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Fault("broken", f"the connection broke ({error!r})") from error
    finally:
        if response is not None:
            # Left unread, a connection cannot serve again.
            response.close()


def may_pass(status: int) -> bool:
    """Whether a status that is no success may be another the next time: the server is at fault, or
    too busy. What it says of the request itself it will say again."""
    return status >= 500 or status in (408, 429)


def pause_seconds(again: int, backoff_seconds: float) -> float:
    """Most seconds before an address is asked again for the so-manyth time; doubles each time."""
    if not again:
        return 0.0
    return min(backoff_seconds * 2 ** (again - 1), _MOST_PAUSE_SECONDS)


def asked_seconds(retry_after: str) -> float:
    """What a server asks to wait in its header Retry-After, believed up to 30 seconds; 0 where it
    says a date or nothing."""
    try:
        seconds = float(retry_after)
    except ValueError:
        return 0.0
    # Asked this way round, a nan is none.
    return min(seconds, _MOST_PAUSE_SECONDS) if seconds > 0 else 0.0


def address_problem(url: str) -> str | None:
    """What is wrong with the address of an API, as the rest of "it must …".

    Where it may hold a key it is not repeated.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    # A key there would stand in every message.
    if "@" in url or "?" in url:
        return "hold neither a name nor a query: a key belongs into an environment variable"
    return None if good else f"be an address such as http://HOST:PORT/v1, not {url!r}"


def read_key(variable: str, owner: str) -> str:
    """The key of an API: the value of an environment variable; "" without a name.

    Args:
        variable: its name.
        owner: whose API it is, for messages.

    Raises:
        ValueError: the variable is not set, or holds what can be no key; says its name alone.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} (key_variable) is not set: put the key of "
            f"{owner} into it, in every process."
        )
    if not can_be_sent(key):
        raise ValueError(f"the key in {variable} is not printable ASCII without spaces.")
    return key


def can_be_sent(secret: str) -> bool:
    """Whether a token or key can stand in a header: printable ASCII without spaces."""
    return secret.isascii() and secret.isprintable() and " " not in secret


def shown(body: bytes | str, secret: str = "") -> str:
    """What a message quotes of a text from elsewhere: its beginning, on one line.

    Args:
        body: the text.
        secret: a key that the text may repeat, and the message must not.
    """
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    if secret:
        text = text.replace(secret, "…")
    if not text:
        return "(nothing)"
    cut = text[:_SHOWN_CHARACTERS]
    return repr(cut) + ("…" if len(text) > len(cut) else "")
