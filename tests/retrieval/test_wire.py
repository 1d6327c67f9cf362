"""The form of /retrieve, both ways."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.wire import as_document, request_body, response_body, results_of

PASSAGE = Passage("7", "Paris", "The mayor is Bob.", 2.5)
DOCUMENT = {"id": "7", "contents": '"Paris"\nThe mayor is Bob.'}


def body(result):
    return json.dumps({"result": result}).encode()


def test_an_answer_has_the_keys_of_the_original():
    with_scores = json.loads(response_body([[PASSAGE], []], return_scores=True))
    assert with_scores == {"result": [[{"document": DOCUMENT, "score": 2.5}], []]}
    without = json.loads(response_body([[PASSAGE]], return_scores=False))
    assert without == {"result": [[DOCUMENT]]}


def test_a_request_has_the_keys_of_the_original():
    assert json.loads(request_body(["a", "b"], 3)) == {
        "queries": ["a", "b"],
        "topk": 3,
        "return_scores": True,
    }
    assert json.loads(request_body(["a\ud800b"], 1))["queries"] == ["a?b"]


@pytest.mark.parametrize(
    ("item", "passage"),
    [
        ({"document": DOCUMENT, "score": 2.5}, PASSAGE),
        (DOCUMENT, Passage("7", "Paris", "The mayor is Bob.", 0.0)),
        # Its BM25 has no id, and its dense retriever numbers.
        (
            {"document": {"id": 7, "contents": "Paris\nThe mayor is Bob."}, "score": 1},
            Passage("7", "Paris", "The mayor is Bob.", 1.0),
        ),
        ({"document": {"id": "7", "title": "T", "text": "x"}}, Passage("7", "T", "x", 0.0)),
        ({"document": {"id": "7", "text": "x"}, "score": "1.5"}, Passage("7", "", "x", 1.5)),
        ({"id": "7", "contents": "one line"}, Passage("7", "", "one line", 0.0)),
        # Its server with a reranker; the id is made of the contents.
        (
            {"document": "T\nx", "score": 0.5},
            Passage(hashlib.sha256(b"T\nx").hexdigest()[:16], "T", "x", 0.5),
        ),
    ],
)
def test_what_servers_send(item, passage):
    assert results_of(body([[item]]), 1, 3) == [[passage]]


def test_passages_without_ids_are_told_apart():
    rows = [[{"contents": "a"}, {"contents": "b"}, {"contents": "a"}]]
    first, second, third = (passage.id for passage in results_of(body(rows), 1, 3)[0])
    assert first == third != second


def test_more_than_was_asked_for_is_cut():
    assert len(results_of(body([[DOCUMENT] * 5]), 1, 3)[0]) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"result": [[{"id"', r"no JSON .*'\{\"result\": \[\[\{\"id\"'"),
        (b"", r"no JSON .*\(nothing\)"),
        (b"[" * 100_000, "no JSON"),
        (b"<html>" + b"x" * 300, r"no JSON .*'<html>x+'…"),
        (b"[]", r'no \{"result": '),
        (b'{"result": {}}', r'no \{"result": '),
        (b'{"result": [null]}', r'no \{"result": '),
        (body([[]]), "1 results for 2 queries"),
        (body([[], [], []]), "3 results for 2 queries"),
        (body([["text"], []]), "a result that is no document: .*'text'"),
        (body([[{"document": 3}], []]), "a result that is no document"),
        (body([[{"id": "1"}], []]), "a document without contents"),
        (body([[{"id": "1", "contents": None}], []]), "a document without contents"),
        (body([[{"document": DOCUMENT, "score": "high"}], []]), "score 'high' is no number"),
    ],
)
def test_what_is_no_answer(answer, message):
    with pytest.raises(ValueError, match=message):
        results_of(answer, 2, 3)


def test_a_score_that_is_no_number_is_not_sent():
    with pytest.raises(ValueError, match="passage '7' has the score nan"):
        response_body([[Passage("7", "", "x", float("nan"))]], return_scores=True)


@given(
    title=st.text(st.characters(exclude_characters="\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")),
    text=st.text(),
    score=st.floats(allow_nan=False, allow_infinity=False),
)
def test_passages_come_back_as_they_went(title, text, score):
    passage = Passage("1", title, text, score)
    sent = response_body([[passage]], return_scores=True)
    assert results_of(sent, 1, 1) == [[passage]]


def test_a_title_of_several_lines_becomes_one():
    assert as_document(Passage("1", "a\nb", "c", 0.0))["contents"] == '"a b"\nc'
