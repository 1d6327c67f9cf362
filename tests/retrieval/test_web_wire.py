"""The form of a web search: what is asked, and what answers mean."""

import json
from urllib.parse import parse_qs

import pytest

from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.web_wire import (
    fitted,
    is_cut,
    passages_of,
    query_string,
    wait_seconds,
)


def body(*results, **more):
    return json.dumps({"type": "search", "web": {"results": list(results)}} | more).encode()


def test_what_is_asked():
    text = query_string("who & what?", 3, {"country": "US", "search_lang": ""})
    assert text.startswith("?")
    assert parse_qs(text[1:]) == {
        "q": ["who & what?"],
        "count": ["3"],
        "text_decorations": ["false"],
        "result_filter": ["web"],
        "country": ["US"],
    }


@pytest.mark.parametrize(
    ("query", "sent", "cut"),
    [
        ("  one\n two ", "one two", False),
        ("", "", False),
        (" ".join(map(str, range(50))), " ".join(map(str, range(50))), False),
        (" ".join(map(str, range(51))), " ".join(map(str, range(50))), True),
        ("x" * 400, "x" * 400, False),
        ("x" * 401, "x" * 400, True),
        ("x" * 399 + " yy", "x" * 399, True),
        ("x" * 398 + " y", "x" * 398 + " y", False),
        ("a\ud83db", "a?b", False),
    ],
)
def test_queries_fit(query, sent, cut):
    assert (fitted(query), is_cut(query)) == (sent, cut)
    assert len(sent) <= 400 and len(sent.split()) <= 50


def test_snippets_are_passages():
    found = passages_of(
        body(
            {"title": "A &amp; <strong>B</strong>", "url": "https://a/", "description": "one  two"},
            {
                "title": "C",
                "url": "https://c/",
                "description": "it&#x27;s",
                "extra_snippets": ["it's", "more"],
            },
            {"url": "https://d/"},
            {"title": "left out", "url": "https://e/"},
        ),
        3,
    )
    assert found == [
        Passage("https://a/", "A & B", "one two", 1.0),
        Passage("https://c/", "C", "it's more", 1 / 2),
        Passage("https://d/", "", "", 1 / 3),
    ]


def test_nothing_found():
    assert passages_of(b'{"type": "search", "query": {"original": "x"}}', 3) == []
    assert passages_of(b'{"type": "search", "web": null}', 3) == []
    assert passages_of(body(), 3) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"<html>", "no JSON: '<html>'"),
        (b"[" * 100_000, "no JSON"),
        (b'{"error": 1}', "no answer of a search"),
        (b"[]", "no answer of a search"),
        (b'{"web": {"hits": []}}', "web without results"),
        (b'{"web": [1]}', "web without results"),
        (body("x"), "a result without an address: \"'x'\""),
        (body({"title": "t"}), "a result without an address"),
    ],
)
def test_answers_of_another_form(text, message):
    with pytest.raises(ValueError, match=message):
        passages_of(text, 3)


def test_the_key_is_not_repeated():
    with pytest.raises(ValueError, match="…") as caught:
        passages_of(b'{"your key": "sesame"}', 3, key="sesame")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "2"}, 2),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"Retry-After": "nan"}, 0),
        ({"Retry-After": "-1"}, 0),
        # What the documentation of the headers gives as examples: a second, and a month.
        ({"X-RateLimit-Remaining": "0, 1000", "X-RateLimit-Reset": "1, 1419704"}, 1),
        ({"X-RateLimit-Remaining": "1, 0", "X-RateLimit-Reset": "1, 1419704"}, 1419704),
        ({"X-RateLimit-Remaining": "0, 0", "X-RateLimit-Reset": "1, 1419704"}, 1419704),
        # A plan without a limit a month.
        (
            {
                "X-RateLimit-Limit": "50, 0",
                "X-RateLimit-Remaining": "0, 0",
                "X-RateLimit-Reset": "1, 1419704",
            },
            1,
        ),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1, 2"}, 0),
        ({"X-RateLimit-Remaining": "soon", "X-RateLimit-Reset": "1"}, 0),
        ({"Retry-After": "3", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9"}, 3),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(headers, seconds):
    assert wait_seconds(headers) == seconds
