"""The server and the client of Search-R1 against ours, field by field, both ways."""

import json

import pytest
import urllib3
from originals import FORMS, original_search, original_server
from servers import running, served

from sr1_jax.retrieval import Passage
from sr1_jax.retrieval.http_retriever import HttpRetriever, SearchFailedError

PASSAGES = [
    Passage("12", "Paris", "The mayor is Bob.\nHe is old.", 7.25),
    Passage("3", 'The "A" team', "é 日本語 🙂 <answer>", 1e-9),
    Passage("0", "", "no title\nand two lines", 0.5),
    Passage("x y", "only a title", "", -3.0),
]


@pytest.fixture(scope="module")
def fixed():
    """Finds the same passages for all queries but the empty one."""

    class Fixed:
        def search(self, queries, k):
            return [PASSAGES[:k] if query else [] for query in queries]

    return Fixed()


@pytest.fixture(scope="module")
def both(fixed):
    """Addresses of the original's server and of ours."""
    with running(original_server(fixed, topk=2)) as theirs, served(fixed, topk=2) as ours:
        yield f"{theirs}/retrieve", f"{ours}/retrieve"


def post(url, body):
    response = urllib3.request("POST", url, body=json.dumps(body).encode(), retries=False)
    return response.status, json.loads(response.data)


ABSENT = object()


def request(**fields):
    return {key: value for key, value in fields.items() if value is not ABSENT}


BODIES = [
    *[
        request(queries=queries, topk=1, return_scores=True)
        for queries in (
            ["a", "b"], ["a"], [], [""], ["", "a"], ["é 日本語 🙂\n\t\"\\"], ["a"] * 300, ABSENT,
            None, "a", 1, {}, {"a": 1}, [1], [None], ["a", 1], [["a"]], [True],
        )
    ],
    *[
        request(queries=["a", ""], topk=topk, return_scores=True)
        for topk in (
            ABSENT, None, 0, 1, 2, 3, 100, "2", "0", 2.0, True, False, 2.5, "x", "", [], {}, [1],
        )
    ],
    *[
        request(queries=["a", ""], topk=3, return_scores=scores)
        for scores in (
            ABSENT, True, False, None, 0, 1, 2, "true", "false", "yes", "no", "on", "maybe", "", [],
        )
    ],
    {"queries": ["a"], "topk_retrieval": 10, "topk_rerank": 1, "docs": [[]], "": None},
    [], None, "a", [{"queries": ["a"]}],
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: json.dumps(body)[:60])
def test_both_servers_answer_alike(both, body):
    (status, theirs), (our_status, ours) = (post(url, body) for url in both)
    assert our_status == status and status in (200, 422)
    if status == 200:
        assert ours == theirs
        assert list(map(types, ours["result"])) == list(map(types, theirs["result"]))
    else:
        assert list(theirs) == ["detail"] and list(ours) == ["error"]


def types(value):
    """The types in a value: 1 and 1.0 are equal, and true is 1."""
    if isinstance(value, dict):
        return {key: types(item) for key, item in value.items()}
    return [types(item) for item in value] if isinstance(value, list) else type(value)


def test_where_ours_is_stricter(both):
    """A negative number of passages is an error of the request; theirs is left to the engine."""
    body = {"queries": ["a"], "topk": -1, "return_scores": True}
    assert post(both[1], body)[0] == 422
    assert post(both[1], body | {"topk": 101})[0] == 422


@pytest.mark.parametrize("queries", [[], ["a"], ["", "a"], ["é 日本語 🙂\n"], ["a"] * 2560])
@pytest.mark.parametrize("topk", [1, 3])
def test_its_client_reads_our_server_as_its_own(both, queries, topk):
    """2,560 queries: a batch of 512 questions in groups of five, in its script for GRPO."""
    theirs, ours = (original_search(url, queries, topk) for url in both)
    assert ours == theirs and len(ours) == len(queries)
    if queries == ["a"] and topk == 1:
        assert ours == ['Doc 1(Title: "Paris") The mayor is Bob.\nHe is old.\n']


@pytest.mark.parametrize("form", FORMS)
def test_our_client_reads_each_of_its_servers(fixed, form):
    """Ids are made up where there are none, the score is then 0; all else is as with ours."""
    with running(original_server(fixed, form=form)) as theirs, served(fixed) as ours:
        clients = [HttpRetriever([f"{url}/retrieve"]) for url in (theirs, ours)]
        for client in clients:
            client.connect()
        for queries in (["a"], ["", "a", "b"]):
            for k in (1, 4):
                got, expected = (client.search(queries, k) for client in clients)
                assert list(map(len, got)) == list(map(len, expected))
                for passage, own in zip(flat(got), flat(expected), strict=True):
                    assert (passage.title, passage.text) == (own.title, own.text)
                    assert passage.score == (0.0 if form == "web" else own.score)
                    assert passage.id == own.id if form == "dense" else passage.id
                assert len({p.id for p in got[-1]}) == k
        assert clients[0].fingerprint == ""


def flat(rows):
    return [passage for row in rows for passage in row]


def test_our_client_asks_for_scores(fixed):
    """The published server fails without."""
    with running(original_server(fixed, without_scores=False)) as theirs:
        url = f"{theirs}/retrieve"
        response = urllib3.request("POST", url, body=b'{"queries": ["a"]}', retries=False)
        assert response.status == 500
        assert HttpRetriever([url]).search(["a"], 4) == [PASSAGES]


def test_errors_of_its_server_are_told(fixed):
    class Broken:
        def search(self, queries, k):
            raise RuntimeError

    with running(original_server(Broken())) as theirs:
        client = HttpRetriever([f"{theirs}/retrieve"], attempts=3, backoff_seconds=0.0)
        with pytest.raises(SearchFailedError, match=r"3 attempts.*status 500: 'Internal Server"):
            client.search(["a"], 1)
    with running(original_server(fixed)) as theirs:
        client = HttpRetriever([f"{theirs}/elsewhere"], attempts=3, backoff_seconds=0.0)
        # It will say so again: it is not asked again.
        with pytest.raises(SearchFailedError, match=r"1 attempts.*status 404: '.\"detail\":"):
            client.search(["a"], 1)


def test_its_client_takes_no_error_for_an_answer(both):
    """It looks for `result`, and does not find it."""
    with pytest.raises(KeyError, match="result"):
        original_search(both[1], [1])
