"""The client of /retrieve: what it asks, what it bears, and what it says when it fails."""

import collections
import threading
import time

import pytest
from servers import FAULTS, FaultyServer, closed_port

from sr1_jax.retrieval import Passage, check_retrieval, open_retriever
from sr1_jax.retrieval.http_retriever import TOKEN_VARIABLE, HttpRetriever, SearchFailedError
from sr1_jax.retrieval.settings import RETRIEVAL


def client(*urls, **changes):
    options = dict(timeout_seconds=10.0, attempts=3, backoff_seconds=0.0) | changes
    return HttpRetriever(urls, **options)


def settings(**http):
    config = RETRIEVAL.defaults()
    config.kind = "http"
    config.http.update(dict(timeout_seconds=10.0, attempts=2, backoff_seconds=0.0) | http)
    return config


def first(number):
    """A function of faults: the first requests fail so, the others do not."""
    return lambda request, body: number[request] if request < len(number) else None


def test_a_search_asks_as_the_original_does(fake_retriever):
    with FaultyServer(fake_retriever()) as server:
        found = client(server.url).search(["a", "b"], 2)
    assert server.bodies == [{"queries": ["a", "b"], "topk": 2, "return_scores": True}]
    assert found == fake_retriever().search(["a", "b"], 2)
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]


def test_many_queries_are_several_requests(fake_retriever):
    with FaultyServer(fake_retriever()) as server:
        retriever = client(server.url, queries=2)
        assert [row[0].id for row in retriever.search(list("abcde"), 1)] == [
            "a-1", "b-1", "c-1", "d-1", "e-1",
        ]  # fmt: skip
        assert retriever.search([], 1) == []
    assert [body["queries"] for body in server.bodies] == [["a", "b"], ["c", "d"], ["e"]]


def test_connections_are_kept(fake_retriever):
    with FaultyServer(fake_retriever()) as server:
        retriever = client(server.url)
        for _ in range(20):
            retriever.search(["a"], 1)
    assert server.connections == 1


def test_many_threads_at_once(fake_retriever):
    with FaultyServer(fake_retriever()) as server:
        retriever, found = client(server.url), {}

        def ask(name):
            found[name] = retriever.search([name], 1)[0][0].id

        threads = [threading.Thread(target=ask, args=(f"q{i}",)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {f"q{i}": f"q{i}-1" for i in range(32)}
    assert retriever.counts() == {"http_attempts": 32, "http_requests": 32}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again(fake_retriever, fault):
    kind = {
        "hung": "timeout", "drip": "timeout", "500": "status", "broken": "broken",
        "cut": "malformed", "length": "malformed",
    }[fault]  # fmt: skip
    with FaultyServer(fake_retriever(), first([fault, fault])) as server:
        retriever = client(server.url, timeout_seconds=0.5 if kind == "timeout" else 10.0)
        assert retriever.search(["a"], 1)[0][0].id == "a-1"
    assert retriever.counts() == {
        "http_attempts": 3, "http_requests": 1, f"http_{kind}": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hung", r"no answer within 0\.5 seconds$"),
        ("drip", r"no answer within 0\.5 seconds$"),
        ("500", r"""status 500: '{"error": "as asked"}'$"""),
        ("503", "status 503: "),
        ("cut", r"no JSON \(.*\): '\{\"result\": \[\[\{\"docu"),
        ("broken", r"the connection broke \(.*IncompleteRead"),
        ("length", r"2 results for 1 queries: '\{\"result\""),
    ],
)
def test_errors_name_the_address_and_what_came_back(fake_retriever, fault, message):
    with FaultyServer(fake_retriever(), lambda *_: fault) as server:
        seconds = 0.5 if fault in ("hung", "drip") else 10.0
        retriever = client(server.url, timeout_seconds=seconds)
        with pytest.raises(SearchFailedError, match=message) as caught:
            retriever.search(["a"], 1)
    assert "1 queries were not answered in 3 attempts" in str(caught.value)
    assert server.url in str(caught.value)
    assert retriever.counts()["http_given_up"] == 1
    assert len(server.bodies) == 3


def test_nobody_listens():
    url = closed_port()
    retriever = client(url)
    with pytest.raises(SearchFailedError, match=rf"the last, {url}: no connection \(.*refused"):
        retriever.search(["a"], 1)
    assert retriever.counts()["http_refused"] == 3


@pytest.mark.parametrize("status", ["400", "401", "404", "413", "422", "301"])
def test_what_will_not_change_is_not_asked_again(fake_retriever, status):
    with FaultyServer(fake_retriever(), lambda *_: status) as server:
        with pytest.raises(SearchFailedError, match=rf"in 1 attempts .* status {status}"):
            client(server.url).search(["a"], 1)
        assert len(server.bodies) == 1


def test_another_address_stands_in(fake_retriever):
    dead = closed_port()
    with (
        FaultyServer(fake_retriever(), lambda *_: "404") as lost,
        FaultyServer(fake_retriever()) as good,
    ):
        retriever = client(dead, lost.url, good.url)
        for name in "abcdef":
            assert retriever.search([name], 1)[0][0].id == f"{name}-1"
    # Once they have failed they rest: each is asked about once, not once a search.
    counts = retriever.counts()
    assert counts["http_refused"] == len(lost.bodies) == 1
    assert counts["http_attempts"] == 8 and len(good.bodies) == 6


def test_addresses_take_turns(fake_retriever):
    with FaultyServer(fake_retriever()) as one, FaultyServer(fake_retriever()) as two:
        retriever = client(one.url, two.url)
        for _ in range(10):
            retriever.search(["a"], 1)
    assert len(one.bodies) == len(two.bodies) == 5


def test_the_pause_doubles_and_the_time_is_bounded(fake_retriever):
    with FaultyServer(fake_retriever(), lambda *_: "500") as server:
        retriever = client(server.url, attempts=4, backoff_seconds=0.1, timeout_seconds=3.0)
        began = time.monotonic()
        with pytest.raises(SearchFailedError):
            retriever.search(["a"], 1)
        took = time.monotonic() - began
    assert retriever.bound_seconds == pytest.approx(4 * 3.0 + 0.1 + 0.2 + 0.4)
    # Each pause is at least half of what it may be.
    assert 0.35 <= took < retriever.bound_seconds


def test_hung_servers_do_not_hold_longer_than_the_bound(fake_retriever):
    with FaultyServer(fake_retriever(), lambda *_: "hung") as server:
        retriever = client(server.url, attempts=2, timeout_seconds=0.2, backoff_seconds=0.1)
        began = time.monotonic()
        with pytest.raises(SearchFailedError):
            retriever.search(["a"], 1)
        assert time.monotonic() - began < retriever.bound_seconds + 0.3


@pytest.mark.parametrize(("queries", "k"), [("text", 3), ([1], 3), (["a"], 0)])
def test_bad_arguments(queries, k):
    with pytest.raises(ValueError, match=r"must be (a list of strings|at least 1)"):
        client("http://127.0.0.1:1/retrieve").search(queries, k)


# As a kind


def test_opened_by_kind(fake_retriever):
    health = {"fingerprint": "abc"}
    with FaultyServer(fake_retriever(), health=health) as server:
        base = server.url.removesuffix("/retrieve")
        retriever = open_retriever(settings(urls=f"{base}, {server.url}"))
        assert retriever.search(["a"], 1) == [[Passage("a-1", "T1", "on a", 1.0)]]
        assert retriever.fingerprint == "abc"


def test_a_server_of_the_original_has_no_health(fake_retriever):
    with FaultyServer(fake_retriever()) as server:
        assert open_retriever(settings(urls=server.url)).fingerprint == ""


def test_servers_of_different_indices_are_refused(fake_retriever):
    with (
        FaultyServer(fake_retriever(), health={"fingerprint": "one"}) as one,
        FaultyServer(fake_retriever(), health={"fingerprint": "two"}) as two,
        pytest.raises(ValueError, match=r"search different indices: .*'one'.*'two'"),
    ):
        open_retriever(settings(urls=f"{one.url},{two.url}"))


def test_one_server_suffices_to_begin(fake_retriever):
    with FaultyServer(fake_retriever(), health={"fingerprint": "one"}) as server:
        urls = f"{closed_port()},{server.url}"
        assert open_retriever(settings(urls=urls)).fingerprint == "one"


def test_no_server_at_all():
    url = closed_port()
    with pytest.raises(ConnectionError, match=rf"urls answers: {url}: no connection"):
        open_retriever(settings(urls=url))


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("", r"retrieval: http\.urls: there is no address"),
        ("localhost:8000", r"retrieval: http\.urls: 'localhost:8000' is no address"),
        ("http://a/retrieve,ftp://b", "'ftp://b' is no"),
        ("http://[::1", r"'http://\[::1' is no"),
        ("http://a:99999/retrieve", "'http://a:99999/retrieve' is no"),
    ],
)
def test_addresses_that_are_none(urls, message):
    with pytest.raises(ValueError, match=message):
        check_retrieval(settings(urls=urls))
    # Of whatever kind the run's retriever is.
    with pytest.raises(ValueError, match=r"retrieval\.http\.urls must hold addresses"):
        RETRIEVAL.check(settings(urls=urls), "retrieval.")


def test_the_token_is_borne(fake_retriever, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("sesame\n")
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment")
    with FaultyServer(fake_retriever()) as server:
        for token_file in (str(file), ""):
            open_retriever(settings(urls=server.url, token_file=token_file)).search(["a"], 1)
    # Each one's first request is that of `connect`.
    assert [headers["Authorization"] for headers in server.headers] == [
        "Bearer sesame", "Bearer sesame",
        "Bearer of-the-environment", "Bearer of-the-environment",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", r"does not answer a query: status 404.*retrieval\.http\.urls"),
        ("401", r"refuses the token \(status 401\).*retrieval\.http\.token_file"),
        ("cut", r"does not answer a query: .*JSON"),
    ],
)
def test_what_would_fail_every_search_is_told_before_the_first(fake_retriever, fault, message):
    with (
        FaultyServer(fake_retriever(), first([fault])) as server,
        pytest.raises((ConnectionError, PermissionError), match=message),
    ):
        open_retriever(settings(urls=server.url))


def test_a_server_that_is_only_busy_is_asked_again(fake_retriever):
    with FaultyServer(fake_retriever(), first(["503"])) as server:
        assert open_retriever(settings(urls=server.url)).search(["a"], 1)


@pytest.mark.parametrize(("content", "message"), [(" ", "is empty"), ("a b", "printable ASCII")])
def test_what_is_no_token(tmp_path, content, message):
    (tmp_path / "token").write_text(content)
    with pytest.raises(ValueError, match=rf"retrieval\.http\.token_file=.*{message}"):
        open_retriever(settings(token_file=str(tmp_path / "token")))


def test_faults_have_each_a_count_of_their_own(fake_retriever):
    """What is injected is what is counted, one for one."""
    with FaultyServer(fake_retriever(), first([*FAULTS, *FAULTS])) as server:
        retriever = client(server.url, attempts=len(FAULTS) * 2 + 1, timeout_seconds=0.5)
        retriever.search(["a"], 1)
    injected = collections.Counter(server.injected)
    counts = retriever.counts()
    assert counts["http_timeout"] == injected["hung"] + injected["drip"]
    assert counts["http_status"] == injected["500"]
    assert counts["http_broken"] == injected["broken"]
    assert counts["http_malformed"] == injected["cut"] + injected["length"]
