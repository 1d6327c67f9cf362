"""Searches in the background: bounds, batches, retries, time-outs."""

import itertools
import threading
import time

import pytest

from sr1_jax.environment.pool import SearchPool
from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout import default_config


def make_pool(search, **changes):
    config = default_config()
    config.update(dict(passages=1, retriever_backoff_seconds=0.0) | changes)

    class Retriever:
        def search(self, queries, k):
            return search(queries)

    return SearchPool(Retriever(), lambda passages: [len(passages)], config)


def echo(queries):
    return [[Passage(query, "", query, 1.0)] for query in queries]


def drain(pool, seconds=10.0):
    """All answers, by key."""
    found, until = {}, time.monotonic() + seconds
    while pool.pending and time.monotonic() < until:
        found |= {answer.key: answer for answer in pool.poll(0.5)}
    assert not pool.pending
    return found


def texts(answer):
    return [[passage.text for passage in found] for found in answer.passages]


def test_every_request_gets_its_own_answer():
    pool = make_pool(echo, retriever_batch=3, retriever_threads=2)
    wanted = {key: [f"{key}.{i}" for i in range(key % 4 or 1)] for key in range(20)}
    for key, queries in wanted.items():
        pool.submit(key, queries)
    assert pool.pending == 20
    found = drain(pool)
    assert {key: texts(answer) for key, answer in found.items()} == {
        key: [[query] for query in queries] for key, queries in wanted.items()
    }
    assert all(answer.observation == [len(wanted[key])] for key, answer in found.items())
    assert pool.stats["searches"] == sum(map(len, wanted.values()))
    assert pool.stats["retrieval_seconds"] > 0


def test_batches_are_bounded_but_no_request_is_cut():
    sizes = []
    pool = make_pool(lambda q: sizes.append(len(q)) or echo(q), retriever_batch=4)
    for key, count in enumerate([3, 1, 2, 9, 1]):
        pool.submit(key, ["q"] * count)
    drain(pool)
    assert sorted(sizes) == [1, 2, 4, 9]


def test_no_more_threads_than_allowed():
    under_way, most, lock = 0, 0, threading.Lock()

    def search(queries):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return echo(queries)

    pool = make_pool(search, retriever_threads=3, retriever_batch=1)
    for key in range(12):
        pool.submit(key, ["q"])
    drain(pool)
    assert most == 3


def test_poll_waits_for_nothing_that_was_not_asked():
    pool = make_pool(echo)
    began = time.monotonic()
    assert pool.poll(30.0) == []
    assert time.monotonic() - began < 10


def test_poll_does_not_wait_unless_told():
    release = threading.Event()
    pool = make_pool(lambda q: release.wait(10) and echo(q))
    pool.submit("a", ["q"])
    began = time.monotonic()
    assert pool.poll() == []
    assert time.monotonic() - began < 5
    assert pool.poll(0.01) == [] and pool.pending == 1
    release.set()
    assert texts(drain(pool)["a"]) == [["q"]]


def test_retries_wait_twice_as_long_each_time():
    times = []

    def search(queries):
        times.append(time.monotonic())
        if len(times) < 4:
            raise OSError("down")
        return echo(queries)

    pool = make_pool(search, retriever_attempts=4, retriever_backoff_seconds=0.05)
    pool.submit("a", ["q"])
    drain(pool)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert all(wait >= pause for wait, pause in zip(waits, [0.05, 0.1, 0.2]))


def test_a_search_that_hangs_is_given_up_and_made_again():
    calls, release = [], threading.Event()

    def search(queries):
        calls.append(queries)
        if len(calls) == 1:
            release.wait(20)
            return [[Passage("late", "", "late", 1.0)]]
        return echo(queries)

    pool = make_pool(search, retriever_timeout_seconds=0.1, retriever_threads=1)
    pool.submit("a", ["q"])
    found = drain(pool)
    release.set()
    assert texts(found["a"]) == [["q"]]
    assert (len(calls), pool.stats["retriever_timeouts"]) == (2, 1)
    # The late answer belongs to nobody.
    pool.submit("b", ["r"])
    assert {key: texts(answer) for key, answer in drain(pool).items()} == {"b": [["r"]]}


def test_a_search_that_always_hangs_is_an_error():
    release = threading.Event()
    pool = make_pool(
        lambda q: release.wait(20) and echo(q),
        retriever_timeout_seconds=0.05,
        retriever_attempts=2,
    )
    pool.submit("a", ["q"])
    with pytest.raises(RuntimeError, match=r"failed 2 times.*no answer within 0\.05 seconds"):
        drain(pool)
    release.set()


def test_one_bad_batch_does_not_spoil_the_others():
    def search(queries):
        if "bad" in queries:
            raise OSError("no")
        return echo(queries)

    pool = make_pool(search, retriever_batch=1, retriever_attempts=2, retriever_failure="empty")
    for key in ("good", "bad", "fine"):
        pool.submit(key, [key])
    found = drain(pool)
    assert {key: texts(answer) for key, answer in found.items()} == {
        "good": [["good"]],
        "bad": [[]],
        "fine": [["fine"]],
    }
    assert pool.stats["retriever_failures"] == 1


def test_after_closing_nothing_is_started():
    calls = []
    pool = make_pool(lambda q: calls.append(q) or echo(q))
    pool.submit("a", ["q"])
    pool.close()
    assert pool.poll(0.05) == [] and pool.pending == 0 and calls == []


def test_a_retry_that_waits_for_a_thread_waits_quietly(monkeypatch):
    """One thread, which searches for a second; the retry of another search is due long before."""
    looked = []

    def search(queries):
        if queries == ["bad"] and not looked:
            looked.append(0)
            raise RuntimeError("once")
        time.sleep(1.0 if queries == ["slow"] else 0.0)
        return echo(queries)

    pool = make_pool(search, retriever_threads=1, retriever_batch=1, retriever_backoff_seconds=0.01)
    collected = itertools.count()
    collect = pool._collect
    monkeypatch.setattr(pool, "_collect", lambda until: (next(collected), collect(until))[1])
    pool.submit(0, ["bad"])
    pool.submit(1, ["slow"])
    found = drain(pool)
    assert {key: texts(answer) for key, answer in found.items()} == {0: [["bad"]], 1: [["slow"]]}
    assert next(collected) < 50
