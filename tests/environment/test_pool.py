"""Calls of tools in the background: bounds, batches, retries, time-outs."""

import itertools
import threading
import time

import pytest

from sr1_jax.environment import Observation
from sr1_jax.environment.pool import ToolPool
from sr1_jax.environment.settings import CallOptions


def make_pool(answer, tags=("tool",), **changes):
    """A pool of tools that answer by a function of their requests."""

    class Tool:
        observation_tag = "seen"

        def __init__(self, tag):
            self.tag = tag

        def call(self, requests):
            return answer(requests)

    options = CallOptions(**(dict(backoff_seconds=0.0) | changes))
    return ToolPool(map(Tool, tags), lambda tag, o: [len(o.text)], dict.fromkeys(tags, options))


def echo(requests):
    return [Observation(request) for request in requests]


def drain(pool, seconds=10.0):
    """All answers, by key."""
    found, until = {}, time.monotonic() + seconds
    while pool.pending and time.monotonic() < until:
        found |= {answer.key: answer for answer in pool.poll(0.5)}
    assert not pool.pending
    return found


def texts(answers):
    return {key: answer.observation.text for key, answer in answers.items()}


def test_every_request_gets_its_own_answer():
    pool = make_pool(echo, batch=3, threads=2)
    wanted = {key: f"{key}" * (key % 4 + 1) for key in range(20)}
    for key, request in wanted.items():
        pool.submit(key, "tool", request)
    assert pool.pending == 20
    found = drain(pool)
    assert texts(found) == wanted
    assert all(answer.ids == [len(wanted[key])] for key, answer in found.items())
    assert pool.stats["tool_calls"] == 20
    assert pool.stats["tool_seconds"] > 0


def test_batches_are_bounded():
    sizes = []
    pool = make_pool(lambda r: sizes.append(len(r)) or echo(r), batch=4)
    for key in range(10):
        pool.submit(key, "tool", "q")
    drain(pool)
    assert sorted(sizes) == [2, 4, 4]


def test_a_slow_tool_does_not_hold_up_another():
    release = threading.Event()
    pool = make_pool(
        lambda r: ("slow" in r and not release.wait(20)) or echo(r), tags=("a", "b"), threads=1
    )
    pool.submit(1, "a", "slow")
    pool.submit(2, "b", "fast")
    found = {answer.key: answer for answer in pool.poll(10.0)}
    assert texts(found) == {2: "fast"} and pool.pending == 1
    release.set()
    assert texts(drain(pool)) == {1: "slow"}
    assert (pool.stats["a_calls"], pool.stats["b_calls"]) == (1, 1)


def test_a_wrong_number_of_observations_is_a_failure():
    pool = make_pool(lambda r: [], attempts=1)
    pool.submit(1, "tool", "q")
    with pytest.raises(RuntimeError, match="0 observations came back for 1 requests"):
        drain(pool)


def test_no_more_threads_than_allowed():
    under_way, most, lock = 0, 0, threading.Lock()

    def answer(requests):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return echo(requests)

    pool = make_pool(answer, threads=3, batch=1)
    for key in range(12):
        pool.submit(key, "tool", "q")
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
    pool.submit("a", "tool", "q")
    began = time.monotonic()
    assert pool.poll() == []
    assert time.monotonic() - began < 5
    assert pool.poll(0.01) == [] and pool.pending == 1
    release.set()
    assert texts(drain(pool)) == {"a": "q"}


def test_retries_wait_twice_as_long_each_time():
    times = []

    def answer(requests):
        times.append(time.monotonic())
        if len(times) < 4:
            raise OSError("down")
        return echo(requests)

    pool = make_pool(answer, attempts=4, backoff_seconds=0.05)
    pool.submit("a", "tool", "q")
    drain(pool)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert all(wait >= pause for wait, pause in zip(waits, [0.05, 0.1, 0.2]))


def test_a_call_that_hangs_is_given_up_and_made_again():
    calls, release = [], threading.Event()

    def answer(requests):
        calls.append(requests)
        if len(calls) == 1:
            release.wait(20)
            return [Observation("late")]
        return echo(requests)

    pool = make_pool(answer, timeout_seconds=0.1, threads=1)
    pool.submit("a", "tool", "q")
    found = drain(pool)
    release.set()
    assert texts(found) == {"a": "q"}
    assert (len(calls), pool.stats["tool_timeouts"]) == (2, 1)
    # The late answer belongs to nobody.
    pool.submit("b", "tool", "r")
    assert texts(drain(pool)) == {"b": "r"}


def test_a_call_that_always_hangs_is_an_error():
    release = threading.Event()
    pool = make_pool(
        lambda q: release.wait(20) and echo(q),
        timeout_seconds=0.05,
        attempts=2,
    )
    pool.submit("a", "tool", "q")
    with pytest.raises(RuntimeError, match=r"failed 2 times.*no answer within 0\.05 seconds"):
        drain(pool)
    release.set()


def test_one_bad_batch_does_not_spoil_the_others():
    def answer(requests):
        if "bad" in requests:
            raise OSError("no")
        return echo(requests)

    pool = make_pool(answer, batch=1, attempts=2, failure="empty")
    for key in ("good", "bad", "fine"):
        pool.submit(key, "tool", key)
    found = drain(pool)
    assert texts(found) == {"good": "good", "bad": "", "fine": "fine"}
    assert pool.stats["tool_failures"] == 1


def test_after_closing_nothing_is_started():
    calls = []
    pool = make_pool(lambda q: calls.append(q) or echo(q))
    pool.submit("a", "tool", "q")
    pool.close()
    assert pool.poll(0.05) == [] and pool.pending == 0 and calls == []


def test_a_retry_that_waits_for_a_thread_waits_quietly(monkeypatch):
    """One thread, which works for a second; the retry of another call is due long before."""
    looked = []

    def answer(requests):
        if requests == ["bad"] and not looked:
            looked.append(0)
            raise RuntimeError("once")
        time.sleep(1.0 if requests == ["slow"] else 0.0)
        return echo(requests)

    pool = make_pool(answer, threads=1, batch=1, backoff_seconds=0.01)
    collected = itertools.count()
    collect = pool._collect
    monkeypatch.setattr(pool, "_collect", lambda until: (next(collected), collect(until))[1])
    pool.submit(0, "tool", "bad")
    pool.submit(1, "tool", "slow")
    found = drain(pool)
    assert texts(found) == {0: "bad", 1: "slow"}
    assert next(collected) < 50


def test_a_request_that_a_tool_cannot_bear_spoils_no_other():
    sizes = []

    def answer(requests):
        sizes.append(len(requests))
        if "poison" in requests:
            raise ValueError("no")
        return echo(requests)

    pool = make_pool(answer, attempts=2, threads=1, failure="empty")
    for request in ("a", "poison", "b"):
        pool.submit(request, "tool", request)
    assert texts(drain(pool)) == {"a": "a", "poison": "", "b": "b"}
    assert sizes == [3, 1, 1, 1]
    assert pool.stats["tool_failures"] == 1
