r"""The form of retrieval over HTTP that Search-R1 and its kin speak.

    POST /retrieve {"queries": ["…"], "topk": 3, "return_scores": true}
    → {"result": [[{"document": {"id": "…", "contents": "\"Title\"\ntext"}, "score": 1.0}]]}

There is one list a query, best first. Without `return_scores` its items are the documents alone. A
server may leave `id` and `score` out, and may have `title` and `text` in place of, or beside,
`contents`, or the contents alone for a document, as Search-R1's with a reranker has.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

from sr1_jax.http_exchange import shown
from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.corpus import split_contents


def addresses(text: str) -> list[str]:
    """Addresses of servers, given with commas between them; one without a path is that of
    /retrieve.

    Raises:
        ValueError: there is none, or one is no address.
    """
    urls = []
    for given in filter(None, map(str.strip, text.split(","))):
        try:
            parts = urlsplit(given)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"{given!r} is no address; write http://HOST:PORT/retrieve.")
        urls.append(given if parts.path not in ("", "/") else urljoin(given, "/retrieve"))
    if not urls:
        raise ValueError("there is no address; write http://HOST:PORT/retrieve.")
    return list(dict.fromkeys(urls))


def as_document(passage: Passage) -> dict[str, str]:
    """A passage as a row of a corpus: its title in quotation marks, then its text."""
    title = " ".join(passage.title.splitlines())
    if title or "\n" in passage.text:
        return {"id": passage.id, "contents": f'"{title}"\n{passage.text}'}
    return {"id": passage.id, "contents": passage.text}


def response_body(results: Sequence[Sequence[Passage]], *, return_scores: bool) -> bytes:
    """The body of an answer, JSON.

    Raises:
        ValueError: a score is not finite.
    """
    rows: list[list[dict[str, Any]]] = []
    for passages in results:
        if not return_scores:
            rows.append([as_document(passage) for passage in passages])
            continue
        for passage in passages:
            if not math.isfinite(passage.score):
                raise ValueError(f"passage {passage.id!r} has the score {passage.score}.")
        rows.append([{"document": as_document(p), "score": float(p.score)} for p in passages])
    # ASCII: half a surrogate pair, which a text may hold, has no UTF-8.
    return json.dumps({"result": rows}).encode("ascii")


def request_body(queries: Sequence[str], k: int) -> bytes:
    """The body of a request for `k` passages a query, with scores: without, the server of Search-R1
    fails.

    Half a surrogate pair, which a sampled query can hold, is replaced: few servers take it.
    """
    clean = [query.encode("utf-8", "replace").decode("utf-8") for query in queries]
    return json.dumps({"queries": clean, "topk": k, "return_scores": True}).encode("ascii")


def results_of(body: bytes, queries: int, k: int) -> list[list[Passage]]:
    """The results that the body of an answer holds.

    Args:
        body: of the answer.
        queries: how many were asked.
        k: most passages a query; a server that sends more is cut short.

    Raises:
        ValueError: it is no JSON, has another form, or another number of results than queries.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({error}): {shown(body)}") from error
    rows = answer.get("result") if isinstance(answer, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f'no {{"result": [[…], …]}}: {shown(body)}')
    if len(rows) != queries:
        raise ValueError(f"{len(rows)} results for {queries} queries: {shown(body)}")
    return [[_passage(item) for item in row[:k]] for row in rows]


def _passage(item: Any) -> Passage:
    document, score = item, 0.0
    if isinstance(item, Mapping) and "document" in item:
        document, score = item["document"], item.get("score", 0.0)
        if isinstance(document, str):
            document = {"contents": document}
    if not isinstance(document, Mapping):
        raise ValueError(f"a result that is no document: {shown(repr(item))}")
    title, text = document.get("title", ""), document.get("text")
    contents = document.get("contents")
    if isinstance(contents, str):
        title, text = split_contents(contents)
    if not isinstance(title, str) or not isinstance(text, str):
        raise ValueError(f"a document without contents: {shown(repr(document))}")
    try:
        number = float(score)
    except (TypeError, ValueError):
        raise ValueError(f"the score {score!r} is no number: {shown(repr(item))}") from None
    return Passage(_id_of(document, title, text), title, text, number)


def _id_of(document: Mapping[str, Any], title: str, text: str) -> str:
    id = document.get("id")
    if isinstance(id, (str, int)) and not isinstance(id, bool) and id != "":
        return str(id)
    # Passages are told apart by their ids.
    written = f"{title}\n{text}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(written).hexdigest()[:16]
