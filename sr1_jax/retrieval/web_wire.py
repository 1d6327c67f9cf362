"""The form of web search that the Brave Search API speaks.

    GET /res/v1/web/search?q=…&count=3      X-Subscription-Token: KEY
    → {"type": "search", "web": {"results": [{"title", "url", "description", "extra_snippets"}]}}

Best first, without scores; "web" is not there where nothing was found. At most 20 results come, for
a query of at most 400 characters and 50 words. Headers say of each window of the plan's limits (a
second, a month) how much is left of it, X-RateLimit-Remaining, and when it begins anew,
X-RateLimit-Reset, in seconds. Only requests that succeed are billed.

Sources: https://api-dashboard.search.brave.com/api-reference/web/search/get and
https://api.search.brave.com/app/documentation/web-search/response-headers.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from sr1_jax.http_exchange import shown
from sr1_jax.retrieval.base import Passage

URL = "https://api.search.brave.com/res/v1/web/search"
KEY_HEADER = "X-Subscription-Token"
MOST_RESULTS = 20
_MOST_CHARACTERS, _MOST_WORDS = 400, 50
# What words of the query are set in, where a server marks them though it was asked not to.
_MARKS = re.compile(r"</?(?:strong|b|em)>")


def fitted(query: str) -> str:
    """The query as it may be sent: white space is one space, and what is too much of it is cut."""
    # Half a surrogate pair, which sampled bytes can give, has no UTF-8.
    clean = query.encode("utf-8", "replace").decode("utf-8")
    words = clean.split()
    text = " ".join(words[:_MOST_WORDS])
    if len(text) > _MOST_CHARACTERS:
        # Between two words if there are two.
        text = text[: _MOST_CHARACTERS + 1].rpartition(" ")[0] or text[:_MOST_CHARACTERS]
    return text


def is_cut(query: str) -> bool:
    """Whether `fitted` leaves out some of a query."""
    return len(fitted(query)) < len(" ".join(query.split()))


def query_string(query: str, k: int, options: Mapping[str, str]) -> str:
    """What stands behind the address of a request, with its "?".

    Args:
        query: see `fitted`.
        k: results, 1 to 20.
        options: parameters of the API; those without a value are left out.
    """
    given = {key: value for key, value in options.items() if value}
    asked = {"q": query, "count": k, "text_decorations": "false", "result_filter": "web"}
    return "?" + urlencode(asked | given)


def passages_of(body: bytes, k: int, *, key: str = "") -> list[Passage]:
    """The results that the body of an answer holds, each with its address as id and the reciprocal
    of its rank as score.

    Args:
        body: of the answer.
        k: most results.
        key: not to be repeated in a message.

    Raises:
        ValueError: it is no JSON, or has another form.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"no JSON: {shown(body, key)}") from None
    if not isinstance(answer, Mapping) or ("web" not in answer and answer.get("type") != "search"):
        raise ValueError(f"no answer of a search: {shown(body, key)}")
    web = answer.get("web") or {"results": []}
    results = web.get("results") if isinstance(web, Mapping) else None
    if not isinstance(results, list):
        raise ValueError(f"web without results: {shown(body, key)}")
    rows = [_fields(result) for result in results[:k]]
    return [Passage(*row, 1.0 / rank) for rank, row in enumerate(rows, 1)]


def _fields(result: Any) -> tuple[str, str, str]:
    """Address, title and snippets of a result."""
    if not isinstance(result, Mapping) or not isinstance(result.get("url"), str):
        raise ValueError(f"a result without an address: {shown(repr(result))}")
    more = result.get("extra_snippets")
    snippets = [result.get("description"), *(more if isinstance(more, list) else ())]
    texts = [_plain(text) for text in snippets if isinstance(text, str)]
    title = result.get("title")
    # A page's description is often one of its snippets too.
    text = " ".join(dict.fromkeys(filter(None, texts)))
    return result["url"], _plain(title) if isinstance(title, str) else "", text


def _plain(text: str) -> str:
    return " ".join(html.unescape(_MARKS.sub("", text)).split())


def wait_seconds(headers: Mapping[str, str]) -> float:
    """How long a server that was asked too often wants to be left alone, in seconds; 0 where it
    does not say.

    It is not bounded: at the end of a month's quota it may be weeks.
    """
    if asked := _numbers(headers.get("Retry-After", "")):
        return asked[0]
    left = _numbers(headers.get("X-RateLimit-Remaining", ""))
    resets = _numbers(headers.get("X-RateLimit-Reset", ""))
    # A window without a limit has nothing left either.
    limits = _numbers(headers.get("X-RateLimit-Limit", "")) or [1.0] * len(left)
    if not len(left) == len(resets) == len(limits):
        return 0.0
    over = (reset for many, reset, limit in zip(left, resets, limits) if limit > 0 and many <= 0)
    return max(over, default=0.0)


def _numbers(text: str) -> list[float]:
    """Finite numbers with commas between them; none if one is no such number."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) and number >= 0 for number in numbers) else []
