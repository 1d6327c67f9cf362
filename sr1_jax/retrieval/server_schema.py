"""What requests to the server look like: their check, and the OpenAPI description of it all."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
_DOCUMENT = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "contents": {"type": "string"}},
    "required": ["id", "contents"],
}
_SCORED = {
    "type": "object",
    "properties": {"document": _DOCUMENT, "score": {"type": "number"}},
    "required": ["document", "score"],
}


def request_model(limits: Any) -> type[pydantic.BaseModel]:
    """The body of a request to /retrieve: queries, topk and return_scores.

    Other keys are ignored, as by the original.

    Args:
        limits: see `server.Limits`.
    """
    query = Annotated[str, pydantic.Field(max_length=limits.query_characters)]
    return pydantic.create_model(
        "RetrieveRequest",
        queries=(list[query], pydantic.Field(max_length=limits.queries)),
        topk=(
            int | None,
            pydantic.Field(None, ge=0, le=limits.topk, description="0 and null: the default"),
        ),
        return_scores=(bool, False),
    )


def openapi(
    model: type[pydantic.BaseModel], limits: Any, topk: int, *, token: bool
) -> dict[str, Any]:
    """The OpenAPI 3.1 description of the server.

    Args:
        model: of requests.
        limits: on them.
        topk: passages a query, where a request does not say.
        token: whether requests must bear one.
    """
    refusals = {
        "400": "the client left, or this is no HTTP",
        "408": f"the body was not there within {limits.body_seconds:g} s",
        "413": f"the body has more than {limits.body_bytes} bytes",
        "422": "the body is no JSON, or has another form",
        "500": "the retriever failed",
        "503": "too many requests wait",
    }
    if token:
        refusals["401"] = "the bearer token is missing or wrong"
    results = {
        "type": "array",
        "items": {"type": "array", "items": {"anyOf": [_SCORED, _DOCUMENT]}},
    }
    found = {"type": "object", "properties": {"result": results}, "required": ["result"]}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "sr1_jax retrieval", "version": "1"},
        "paths": {
            "/retrieve": {
                "post": {
                    "summary": f"Passages for queries, best first; {topk} each by default",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": model.model_json_schema()}},
                    },
                    "responses": {"200": _answer("the passages of each query", found)}
                    | {status: _answer(text, _ERROR) for status, text in refusals.items()},
                }
            },
            "/health": {
                "get": {
                    "summary": "Which index is searched",
                    "responses": {"200": _answer("it runs", {"type": "object"})},
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Metrics in the text form of Prometheus",
                    "responses": {"200": {"description": "metrics", "content": {"text/plain": {}}}}
                    | ({"401": _answer(refusals["401"], _ERROR)} if token else {}),
                }
            },
        },
    }
    if token:
        described["components"] = {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}
        }
        for path, method in (("/retrieve", "post"), ("/metrics", "get")):
            described["paths"][path][method]["security"] = [{"token": []}]
    return described


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
