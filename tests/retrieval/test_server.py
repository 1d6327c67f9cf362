"""The server of /retrieve: what it answers, what it refuses, and that nothing brings it down."""

import concurrent.futures
import json
import re
import threading
import time

import pytest
import urllib3
from servers import bombard, served

from sr1_jax.retrieval import Passage
from sr1_jax.retrieval.http_retriever import HttpRetriever, SearchFailedError
from sr1_jax.retrieval.server import Limits

SMALL = Limits(queries=3, topk=5, query_characters=20, body_bytes=500, body_seconds=0.3)


@pytest.fixture(scope="module")
def http():
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


@pytest.fixture(scope="module")
def small(fake_retriever):
    """The address of a server of small limits."""
    with served(fake_retriever(), SMALL, topk=2) as address:
        yield address


@pytest.fixture
def post(http, small):
    """Function of a body, as a value or as bytes, -> status and parsed answer."""

    def send(body, address=small, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = http.request("POST", f"{address}/retrieve", body=data, headers=headers)
        return response.status, json.loads(response.data)

    return send


def document(query, rank):
    return {"id": f"{query}-{rank}", "contents": f'"T{rank}"\non {query}'}


def scored(query, rank):
    return {"document": document(query, rank), "score": 1.0 / rank}


@pytest.mark.parametrize(
    ("body", "result"),
    [
        (
            {"queries": ["a", "b"], "topk": 1, "return_scores": True},
            [[scored("a", 1)], [scored("b", 1)]],
        ),
        ({"queries": ["a"], "topk": 1, "return_scores": False}, [[document("a", 1)]]),
        ({"queries": ["a"]}, [[document("a", 1), document("a", 2)]]),
        # None and 0 are "the default" to the original.
        ({"queries": ["a"], "topk": None}, [[document("a", 1), document("a", 2)]]),
        ({"queries": ["a"], "topk": 0}, [[document("a", 1), document("a", 2)]]),
        # What its framework lets pass, ours does.
        ({"queries": ["a"], "topk": "1", "other": 1}, [[document("a", 1)]]),
        ({"queries": []}, []),
        ({"queries": [""], "topk": 1}, [[document("", 1)]]),
    ],
)
def test_requests_of_the_original(post, body, result):
    assert post(body) == (200, {"result": result})


def test_a_client_of_the_original_reads_it(post):
    """It takes the first line of the contents for the title, and the rest for the text."""
    _, answer = post({"queries": ["a"], "topk": 1, "return_scores": True})
    title, _, text = answer["result"][0][0]["document"]["contents"].partition("\n")
    assert (title, text) == ('"T1"', "on a")


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 422, "Invalid JSON"),
        (b"{", 422, "Invalid JSON"),
        (b"\xff\xfe", 422, "Invalid JSON"),
        (b"[" * 400, 422, "Invalid JSON: recursion limit"),
        (b'{"queries": ["\\ud800"]}', 422, "Invalid JSON"),
        (b'{"queries": ["a"], "topk": NaN}', 422, "topk: "),
        ([], 422, "Input should be an object"),
        ({}, 422, "queries: Field required"),
        ({"queries": "a"}, 422, "queries: Input should be a valid array"),
        ({"queries": ["a", 1]}, 422, r"queries\.1: Input should be a valid string"),
        ({"queries": ["a"] * 4}, 422, "queries: List should have at most 3 items"),
        ({"queries": ["a" * 21]}, 422, r"queries\.0: String should have at most 20"),
        ({"queries": ["a"], "topk": 6}, 422, "topk: Input should be less than or equal to 5"),
        ({"queries": ["a"], "topk": -1}, 422, "topk: Input should be greater"),
        ({"queries": ["a"], "topk": 10**30}, 422, "topk: "),
        ({"queries": ["a"], "topk": 1.5}, 422, "topk: .*integer"),
        ({"queries": ["a"], "return_scores": "maybe"}, 422, "return_scores: "),
        ({"queries": [1] * 3, "topk": "x"}, 422, "; and 1 more$"),
        ({"queries": ["a"], "pad": "x" * 500}, 413, "the body has more than 500 bytes"),
    ],
)
def test_what_is_wrong_is_told(post, body, status, error):
    got, answer = post(body)
    assert got == status and list(answer) == ["error"]
    assert re.search(error, answer["error"]), answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/retrieve", 405), ("POST", "/health", 405), ("GET", "/nowhere", 404)],
)
def test_other_pages(http, small, method, path, status):
    response = http.request(method, small + path)
    assert response.status == status and json.loads(response.data)["error"]


def test_a_body_that_does_not_come(http, small):
    def drip():
        yield b"{"
        time.sleep(1.0)
        yield b"}"

    response = http.request("POST", f"{small}/retrieve", body=drip(), preload_content=False)
    assert response.status == 408
    assert "was not there within 0.3 s" in json.loads(response.data)["error"]


def test_health_and_metrics(http, fake_retriever):
    class Counted(fake_retriever):
        fingerprint = "abc"

        def counts(self):
            return {"cache_hits": 7.0}

    with served(Counted()) as address:
        for body in (b'{"queries": ["a", "b"]}', b"{"):
            http.request("POST", f"{address}/retrieve", body=body)
        http.request("GET", f"{address}/{'x' * 40}")
        health = json.loads(http.request("GET", f"{address}/health").data)
        metrics = http.request("GET", f"{address}/metrics").data.decode()
    assert health == {"status": "ok", "fingerprint": "abc", "requests_under_way": 0}
    for line in (
        'sr1_requests_total{path="/retrieve",status="200"} 1.0',
        'sr1_requests_total{path="/retrieve",status="422"} 1.0',
        'sr1_requests_total{path="other",status="404"} 1.0',
        "sr1_queries_total 2.0",
        "sr1_request_seconds_count 1.0",
        'sr1_retriever_total{what="cache_hits"} 7.0',
    ):
        assert f"\n{line}\n" in metrics
    assert "process_resident_memory_bytes" in metrics


def test_a_retriever_that_fails_is_told(http, fake_retriever, caplog):
    broken = fake_retriever(failures=1)
    with served(broken) as address:
        response = http.request("POST", f"{address}/retrieve", body=b'{"queries": ["a"]}')
        assert response.status == 500
        told = "the search failed: ConnectionError('call 1 failed')"
        assert json.loads(response.data) == {"error": told}
        # The next one is served.
        assert HttpRetriever([f"{address}/retrieve"]).search(["a"], 1)[0][0].id == "a-1"


def test_results_of_a_wrong_number_are_no_answer(http, fake_retriever):
    class Short(fake_retriever):
        def search(self, queries, k):
            return super().search(queries, k)[1:]

    with served(Short()) as address:
        response = http.request("POST", f"{address}/retrieve", body=b'{"queries": ["a"]}')
    assert response.status == 500 and "0 results for 1 queries" in response.data.decode()


def test_the_token_is_asked_for(http, fake_retriever):
    with served(fake_retriever(), token="sesame") as address:
        ask = [f"{address}/retrieve"]
        for token in ("", "sesam", "séame"):
            with pytest.raises(SearchFailedError, match=r"status 401: .*bearer token is missing"):
                HttpRetriever(ask, token=token).search(["a"], 1)
        assert HttpRetriever(ask, token="sesame").search(["a"], 1)[0][0].id == "a-1"
        assert http.request("GET", f"{address}/metrics").status == 401
        assert http.request("GET", f"{address}/health").status == 200
        refused = http.request("POST", f"{address}/retrieve", body=b"{")
        assert refused.status == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        basic = http.request("POST", ask[0], body=b"{", headers={"Authorization": "Basic sesame"})
        assert basic.status == 401


def test_too_many_at_once_are_told_to_come_back(http, fake_retriever):
    release, most = threading.Event(), [0]

    class Slow(fake_retriever):
        running = 0

        def search(self, queries, k):
            with self._lock:
                self.running += 1
                most[0] = max(most[0], self.running)
            release.wait(10)
            with self._lock:
                self.running -= 1
            return super().search(queries, k)

    with (
        served(Slow(), Limits(threads=2, waiting=3)) as address,
        concurrent.futures.ThreadPoolExecutor(5) as pool,
    ):
        client = HttpRetriever([f"{address}/retrieve"])
        waiting = [pool.submit(client.search, [f"q{i}"], 1) for i in range(5)]
        until = time.monotonic() + 10
        health = {"requests_under_way": 0}
        while health["requests_under_way"] < 5 and time.monotonic() < until:
            time.sleep(0.01)
            health = json.loads(http.request("GET", f"{address}/health").data)
        refused = http.request("POST", f"{address}/retrieve", body=b'{"queries": ["a"]}')
        release.set()
        assert [future.result()[0][0].id for future in waiting] == [f"q{i}-1" for i in range(5)]
    assert refused.status == 503 and refused.headers["Retry-After"] == "1"
    assert "5 requests are under way" in json.loads(refused.data)["error"]
    assert most[0] == 2


def test_both_ends_are_ours(fake_retriever):
    passages = {
        ("quotes", 1): Passage("1", 'The "A" team', 'says "x"\nand\\y', 0.1),
        ("quotes", 2): Passage("2", "", "é 日本語 🙂", -2.5),
        ("quotes", 3): Passage("3", "only a title", "", 1e-300),
    }
    retriever = fake_retriever(lambda query, rank: passages[query, rank])
    with served(retriever) as address:
        found = HttpRetriever([f"{address}/retrieve"]).search(["quotes"], 3)
    assert found == [list(passages.values())]


def test_malformed_bodies_of_many_clients(small):
    found = bombard(small, seconds=2, clients=16)
    assert all(status < 500 for status in found), found
    assert {200, 422} <= set(found)
