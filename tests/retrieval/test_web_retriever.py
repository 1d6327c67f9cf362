"""Search of the web: what is sent, what is paid for, and what happens when it is used up."""

import logging
import subprocess
import sys
import threading
import time

import pytest
from web_search import KEY, MONTH_OVER, SECOND_OVER, WebSearch

from sr1_jax.environment import SearchTool
from sr1_jax.environment.pool import ToolPool
from sr1_jax.environment.settings import CallOptions
from sr1_jax.retrieval import Passage, check_retrieval, fingerprint_of, open_retriever
from sr1_jax.retrieval.hooks import counts_of, told_at_end
from sr1_jax.retrieval.http_retriever import SearchFailedError
from sr1_jax.retrieval.quota import Quota
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.retrieval.web_retriever import UsedUpError, WebRetriever
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import default_config


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", KEY)


def client(server, **changes):
    options = dict(timeout_seconds=10.0, attempts=3, backoff_seconds=0.0) | changes
    return WebRetriever(server.url, KEY, **options)


def settings(**web):
    config = RETRIEVAL.defaults()
    config.kind = "web"
    config.web.update(dict(timeout_seconds=10.0, attempts=2, backoff_seconds=0.0) | web)
    return config


def first(faults):
    """A function of faults: the first requests fail so, the others do not."""
    return lambda number, query: faults[number] if number < len(faults) else None


def test_a_search_asks_as_the_provider_wants_it(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        found = client(server, options={"country": "US"}).search(["who is a"], 2)
    assert found == [
        [
            Passage("https://web.test/who is a-1", "T1", "on who is a", 1.0),
            Passage("https://web.test/who is a-2", "T2", "on who is a", 0.5),
        ]
    ]
    assert server.bodies == [
        {
            "q": "who is a",
            "count": "2",
            "country": "US",
            "text_decorations": "false",
            "result_filter": "web",
        }
    ]
    assert server.paths == ["/res/v1/web/search"]
    assert server.headers[0]["X-Subscription-Token"] == KEY


def test_queries_are_asked_at_the_same_time_but_not_too_many(fake_retriever):
    class Slow(type(fake_retriever())):
        def search(self, queries, k):
            time.sleep(0.05)
            return super().search(queries, k)

    with WebSearch(Slow()) as server:
        found = client(server, connections=3).search(list("abcdefgh"), 1)
    assert [row[0].text for row in found] == [f"on {q}" for q in "abcdefgh"]
    assert 1 < server.most_under_way <= 3


def test_nothing_is_paid_for_twice(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        retriever = client(server)
        assert len(retriever.search(["a", "b", " a ", "", " \n"], 1)[2]) == 1
        threads = [threading.Thread(target=retriever.search, args=(["c"], 1)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        retriever.search(["a", "c"], 1)
        assert retriever.search(["a"], 2) != retriever.search(["a"], 1)  # another k is another
    assert sorted(body["q"] for body in server.bodies) == ["a", "a", "b", "c"]
    assert retriever.counts()["web_known"] == 1 + 7 + 2 + 1
    assert retriever.counts()["web_requests"] == 4


def test_what_was_found_is_kept_though_others_of_the_batch_fail(fake_retriever):
    faults = {"b": 1}

    def fault_of(number, query):
        faults[query["q"]] = faults.get(query["q"], 0) - 1
        return "400" if faults[query["q"]] >= 0 else None

    with WebSearch(fake_retriever(), fault_of) as server:
        retriever = client(server)
        with pytest.raises(SearchFailedError, match=r"in 1 attempts; the last: status 400"):
            retriever.search(["a", "b", "c"], 1)
        assert len(retriever.search(["a", "b", "c"], 1)) == 3
    assert sorted(body["q"] for body in server.bodies) == ["a", "b", "b", "c"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("500", "status"), ("hung", "timeout"), ("broken", "broken"), ("cut", "malformed")],
)
def test_a_fault_is_tried_again_and_counted(fake_retriever, fault, kind):
    with WebSearch(fake_retriever(), first([fault, fault])) as server:
        seconds = 0.4 if fault == "hung" else 10.0
        retriever = client(server, timeout_seconds=seconds, cost_per_request=0.5)
        assert retriever.search(["a"], 1)[0]
        server.released.set()
    counts = retriever.counts()
    assert (counts["web_requests"], counts["web_queries"], counts[f"web_{kind}"]) == (3, 1, 2)
    # Only requests that succeed are billed; one that timed out may have.
    assert counts["web_cost"] == 0.5 * (1 if kind == "status" else 3)


def test_a_server_that_is_asked_too_often_says_how_long_to_wait(fake_retriever):
    waits = [(429, {"Retry-After": "0.3"}), (429, SECOND_OVER | {"X-RateLimit-Reset": "1, 9999"})]
    with WebSearch(fake_retriever(), first(waits)) as server:
        began = time.monotonic()
        assert client(server).search(["a"], 1)[0]
        assert 1.3 <= time.monotonic() - began < 8
    assert len(server.bodies) == 3


def test_requests_are_paced(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        began = time.monotonic()
        client(server, requests_per_second=20.0).search(list("abcde"), 1)
        assert time.monotonic() - began >= 4 / 20


def test_errors_say_what_came_back_but_not_the_key(fake_retriever, caplog):
    with (
        WebSearch(fake_retriever(), lambda *_: (500, {})) as server,
        pytest.raises(SearchFailedError) as caught,
        caplog.at_level(logging.DEBUG),
    ):
        client(server).search(["a"], 1)
    said = str(caught.value)
    assert said == (
        f"the web search at {server.url} did not answer in 3 attempts; the last: status 500: "
        """'{"echo": "…"}'"""
    )
    assert KEY not in said + caplog.text


def test_too_many_passages(fake_retriever):
    with (
        WebSearch(fake_retriever()) as server,
        pytest.raises(ValueError, match="at most 20 passages a query, not 21"),
    ):
        client(server).search(["a"], 21)
    assert server.bodies == []


def test_long_queries_are_cut_and_counted(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        retriever = client(server)
        retriever.search(["w " * 60, "short"], 1)
    assert {len(body["q"].split()) for body in server.bodies} == {50, 1}
    assert retriever.counts()["web_cut_queries"] == 1


# Quota


def test_the_run_stops_when_requests_are_used_up(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        retriever = client(server, quota=Quota(2), cost_per_request=0.005)
        retriever.search(["a", "b"], 1)
        with pytest.raises(UsedUpError) as caught:
            retriever.search(["a", "c"], 1)
        assert retriever.search(["a"], 1)  # what is known costs nothing
    assert len(server.bodies) == 2
    said = str(caught.value)
    assert said.startswith("the 2 requests of retrieval.web.max_requests are used up. ")
    assert "2 requests, 2 of 2 allowed; " in said and "cost: 0.01 at 0.005 a request" in said
    assert "retrieval.web.when_used_up='empty'" in said


def test_or_it_goes_on_and_finds_nothing(fake_retriever, caplog):
    with WebSearch(fake_retriever()) as server:
        retriever = client(server, quota=Quota(2), when_used_up="empty")
        retriever.search(["a", "b"], 1)
        found = [retriever.search(["a", "c", "d"], 1) for _ in range(2)]
    assert [[len(row) for row in rows] for rows in found] == [[1, 0, 0]] * 2
    assert retriever.counts()["web_unanswered"] == 4
    assert "4 queries were not asked" in retriever.told_at_end()
    (record,) = caplog.records
    assert "are used up; from now on searches" in record.getMessage()


def test_attempts_that_fail_count_too(fake_retriever):
    with WebSearch(fake_retriever(), lambda *_: "500") as server, pytest.raises(UsedUpError):
        client(server, quota=Quota(2)).search(["a"], 1)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [402, 429])
def test_the_plans_quota_may_be_used_up_first(fake_retriever, status):
    headers = MONTH_OVER | {"X-RateLimit-Reset": "1, 7200"} if status == 429 else {}
    with WebSearch(fake_retriever(), lambda *_: (status, headers)) as server:
        with pytest.raises(UsedUpError) as caught:
            client(server).search(["a"], 1)
        assert len(server.bodies) == 1  # to wait for weeks helps nobody
    assert f"the plan's quota at {server.url} is used up (status {status}: " in str(caught.value)
    assert ("begins anew in 2.0 hours" in str(caught.value)) == (status == 429)
    assert KEY not in str(caught.value)


def test_many_threads_do_not_exceed_it(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        retriever = client(server, quota=Quota(5), when_used_up="empty", connections=16)
        threads = [
            threading.Thread(target=retriever.search, args=([f"{i}", f"{i + 100}"], 1))
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.bodies) == 5
    counts = retriever.counts()
    assert (counts["web_requests"], counts["web_unanswered"]) == (5, 19)


def test_a_ledger_counts_over_starts_and_processes(tmp_path):
    ledger = tmp_path / "new" / "ledger"
    quota = Quota(100, ledger)
    assert [quota.take() for _ in range(10)] == [True] * 10
    program = (
        "import pathlib, sys; from sr1_jax.retrieval.quota import Quota; "
        f"q = Quota(100, pathlib.Path({str(ledger)!r})); print(sum(q.take() for _ in range(80)))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)
    ]
    taken = [int(run.communicate()[0]) for run in runs]
    assert sum(taken) == 90 and quota.used == 100 and not quota.take()


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("do not write here")
    with pytest.raises(ValueError, match="notes is no ledger of requests; name another file"):
        Quota(3, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "do not write here"


def test_the_pool_neither_asks_again_nor_lets_it_pass(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        tool = SearchTool(client(server, quota=Quota(1)), 1)
        options = {"search": CallOptions(failure="empty", batch=1, threads=1)}
        pool = ToolPool([tool], lambda tag, observation: [1], options)
        pool.submit(0, "search", "a")
        assert [answer.key for answer in pool.poll(10)] == [0]
        pool.submit(1, "search", "b")
        with pytest.raises(UsedUpError, match="are used up"):
            pool.poll(10)
    assert len(server.bodies) == 1


# As a kind


def test_opened_by_kind(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        retriever = open_retriever(
            settings(
                url=server.url, country="DE", language="de", extra_snippets=True, max_requests=3
            )
        )
        assert retriever.search(["a"], 1)[0][0].text == "on a"
    # The first is asked to see whether the key is good.
    assert [body["q"] for body in server.bodies] == ["search", "a"]
    asked = server.bodies[1]
    assert asked["country"] == "DE" and asked["search_lang"] == "de"
    assert asked["safesearch"] == "moderate" and asked["extra_snippets"] == "true"
    assert told_at_end(retriever) == "Web search: 2 requests, 2 of 3 allowed."


def test_results_are_cached_but_not_what_was_not_asked(fake_retriever, tmp_path):
    with WebSearch(fake_retriever()) as server:
        config = settings(url=server.url, max_requests=3, when_used_up="empty")
        config.cache.kind, config.cache.folder = "disk", str(tmp_path)
        one = open_retriever(config)
        assert [len(row) for row in one.search(["a", "b", "c"], 1)].count(1) == 2
        again = open_retriever(config)
        assert [len(row) for row in again.search(["a", "b", "c"], 1)] == [1, 1, 1]
        counts = counts_of(again)
    assert (counts["cache_hits"], counts["cache_misses"], counts["web_requests"]) == (2, 1, 2)
    assert fingerprint_of(one) == fingerprint_of(again) != ""


def test_another_country_is_another_search(fake_retriever):
    with WebSearch(fake_retriever()) as server:
        one, other = (
            open_retriever(settings(url=server.url, country=country)) for country in ("US", "DE")
        )
        assert fingerprint_of(one) != fingerprint_of(other)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, r"variable BRAVE_API_KEY \(key_variable\) is not set.* of the web search"),
     ("a b", "the key in BRAVE_API_KEY is not printable ASCII")],
)  # fmt: skip
def test_a_key_that_is_not_there(monkeypatch, value, message):
    monkeypatch.delenv("BRAVE_API_KEY")
    if value:
        monkeypatch.setenv("BRAVE_API_KEY", value)
    with pytest.raises(ValueError, match=r"retrieval: web\.key_variable: .*" + message):
        check_retrieval(settings())


def test_a_wrong_key_shows_before_the_first_search(fake_retriever, monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", "another")
    with (
        WebSearch(fake_retriever()) as server,
        pytest.raises(ConnectionError, match=r"status 422: .*TOKEN_INVALID.*key_variable") as told,
    ):
        open_retriever(settings(url=server.url))
    assert len(server.bodies) == 1 and "another" not in str(told.value)


def test_requests_used_up_before_the_start(fake_retriever, tmp_path):
    (tmp_path / "ledger").write_text("...")
    with WebSearch(fake_retriever()) as server:
        web = dict(url=server.url, max_requests=3, ledger=str(tmp_path / "ledger"))
        with pytest.raises(UsedUpError, match=r"3 requests of retrieval\.web\.max_requests are us"):
            open_retriever(settings(**web))
        retriever = open_retriever(settings(**web, when_used_up="empty"))
        assert retriever.search(["a"], 1) == [[]]
    assert server.bodies == []


def test_processes_share_the_requests(fake_retriever, monkeypatch):
    monkeypatch.setattr("sr1_jax.cluster.processes", lambda: 4)
    with WebSearch(fake_retriever()) as server:
        retriever = open_retriever(settings(url=server.url, max_requests=11))
        assert retriever._quota.most == 2
        with pytest.raises(ValueError, match="max_requests=3 does not suffice for 4 processes"):
            open_retriever(settings(url=server.url, max_requests=3))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("url", "localhost:8000", "must be an address"),
        ("url", "https://h/search?key=sesame", "must hold neither a name nor a query"),
        ("url", "https://me:sesame@h/search", "must hold neither a name nor a query"),
        ("key_variable", "", "must be the name of an environment variable"),
        ("key_variable", "a-b", "must be the name of an environment variable"),
        ("country", "Germany", "must be a code of two letters"),
        ("safe_search", "yes", "must be one of off, moderate, strict"),
        ("when_used_up", "raise", "must be one of stop, empty"),
        ("max_requests", 0, "must be a whole number of at least 1"),
        ("cost_per_request", -1.0, "must not be negative"),
    ],
)
def test_settings_out_of_range(key, value, message):
    with pytest.raises(ValueError, match=rf"retrieval\.web\.{key} {message}") as caught:
        RETRIEVAL.check(settings(**{key: value}), "retrieval.")
    assert "sesame" not in str(caught.value)


def test_more_passages_than_there_can_be_are_refused_before_a_run():
    check_retrieval(settings(), 20)
    with pytest.raises(ValueError, match=r"at most 20 passages a query, not rollout\.passages=21"):
        check_retrieval(settings(), 21)


def test_a_deterministic_run_must_not_end_its_searches_by_the_clock():
    config = default_config()
    config.data.world_people = 64
    config.retrieval = settings(max_requests=3, when_used_up="empty")
    config.rollout.deterministic = True
    with pytest.raises(ValueError, match=r"deterministic=True excludes retrieval\.web\.when_used"):
        check_config(config)
    config.retrieval.web.when_used_up = "stop"
    check_config(config)
