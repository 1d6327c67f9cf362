"""Stand-ins for the server and the client of Search-R1, from the forms that it publishes.

Its server is `search_r1/search/retrieval_server.py`, and others beside it, see FORMS; its
client is `_batch_search` and `_passages2string` of `search_r1/llm_agent/generation.py`.
"""

from __future__ import annotations

import json

import pydantic
import urllib3
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route


def _contents(passage):
    return f'"{passage.title}"\n{passage.text}'


# What its servers send for a passage.
FORMS = {
    # E5 and faiss: the row of the corpus.
    "dense": lambda p: {"document": {"id": p.id, "contents": _contents(p)}, "score": p.score},
    # BM25 of Pyserini, where the index holds the passages: no id, and the title beside them.
    "bm25": lambda p: {
        "document": {"title": p.title.strip('"'), "text": p.text, "contents": _contents(p)},
        "score": p.score,
    },
    # Search engines of the web: no id, no score.
    "web": lambda p: {"document": {"contents": _contents(p)}},
    # With a reranker: the contents alone.
    "reranked": lambda p: {"document": _contents(p), "score": p.score},
}


class _Asked(pydantic.BaseModel):
    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


def original_server(retriever, *, topk=3, form="dense", without_scores=True):
    """The application; errors are FastAPI's.

    Args:
        retriever: answers.
        topk: passages a query, where a request does not say.
        form: one of FORMS.
        without_scores: whether it can answer so. The published server cannot: it takes results
            and scores apart where it has results alone.
    """

    async def retrieve(request):
        try:
            asked = _Asked.model_validate(json.loads(await request.body()))
        except ValueError as error:
            return JSONResponse({"detail": [{"msg": str(error)}]}, 422)
        if not asked.return_scores and not without_scores:
            return PlainTextResponse("Internal Server Error", 500)
        rows = [
            [FORMS[form](passage) for passage in passages]
            for passages in retriever.search(asked.queries, asked.topk or topk)
        ]
        if not asked.return_scores:
            rows = [[item["document"] for item in row] for row in rows]
        return JSONResponse({"result": rows})

    async def nothing(request, error):
        return JSONResponse({"detail": "Not Found"}, 404)

    return Starlette(
        routes=[Route("/retrieve", retrieve, methods=["POST"])], exception_handlers={404: nothing}
    )


def original_search(url, queries, topk=3):
    """What its client makes of an answer: for each query the lines that the model is shown."""
    body = {"queries": queries, "topk": topk, "return_scores": True}
    # Those of the library requests, which it uses.
    headers = {
        "User-Agent": "python-requests/2.32.3",
        "Accept-Encoding": "gzip, deflate",
        "Accept": "*/*",
        "Connection": "keep-alive",
        "Content-Type": "application/json",
    }
    response = urllib3.request(
        "POST", url, body=json.dumps(body).encode(), headers=headers, retries=False
    )
    shown = []
    for row in json.loads(response.data)["result"]:
        lines = (item["document"]["contents"].split("\n") for item in row)
        shown.append(
            "".join(
                f"Doc {rank}(Title: {title}) " + "\n".join(text) + "\n"
                for rank, (title, *text) in enumerate(lines, 1)
            )
        )
    return shown
