"""Rollouts that search over a network that fails, through a cache, and with noise."""

import collections
import sys
import time
from pathlib import Path

import pytest

from sr1_jax.retrieval.cache import Cached
from sr1_jax.retrieval.cache_stores import MemoryStore
from sr1_jax.retrieval.http_retriever import HttpRetriever
from sr1_jax.retrieval.noise import Noisy, Schedule
from sr1_jax.rollout.stats import as_metrics

sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))
from servers import FAULTS, FaultyServer, closed_port

# So many attempts that no streak of faults is too long; without pauses between them.
TIMEOUT, ATTEMPTS = 0.5, 200


class Injected:
    """Fails five requests of six, in every way in turn, until `count` have failed."""

    def __init__(self, count):
        self.left = count

    def __call__(self, number, body):
        # Under the lock of the server.
        if not self.left or number % 6 == 5:
            return None
        self.left -= 1
        return FAULTS[self.left % len(FAULTS)]


def client(*urls, **changes):
    options = dict(timeout_seconds=TIMEOUT, attempts=ATTEMPTS, backoff_seconds=0.0)
    return HttpRetriever(urls, **(options | changes))


def run_under_faults(make_engine, questions, assert_same, fake_retriever, *, faults, samples):
    """Rolls out twice, once with faults: trajectories are the same, and all faults are counted."""
    settings = dict(passages=1, batch=1, threads=16, timeout_seconds=60.0)
    plain = make_engine(fake_retriever(), **settings).run(questions, seed=1, samples=samples)
    searches = sum(len(t.searches) for t in plain)
    with FaultyServer(fake_retriever(), Injected(faults)) as server:
        # One of two addresses is refused, by nobody being there.
        retriever = client(closed_port(), server.url)
        engine = make_engine(retriever, **settings)
        began = time.monotonic()
        run = engine.run(questions, seed=1, samples=samples)
        took = time.monotonic() - began
    counts, injected = retriever.counts(), collections.Counter(server.injected)
    assert len(server.injected) == faults
    # Nothing is lost, and nothing differs.
    assert len(run) == len(questions) * samples
    assert_same(run, plain)
    assert engine.stats["search_failures"] == engine.stats["search_timeouts"] == 0
    # All is counted, each for what it was; and told with the metrics of the run.
    # A machine that is busy may itself be too slow for an answer.
    busy = counts["http_timeout"] - injected["hung"] - injected["drip"]
    assert 0 <= busy < faults / 10
    assert counts["http_status"] == injected["500"]
    assert counts["http_broken"] == injected["broken"]
    assert counts["http_malformed"] == injected["cut"] + injected["length"]
    assert counts["http_requests"] == searches > 0
    refused = counts["http_refused"]
    assert refused > 0 and counts["http_attempts"] == searches + faults + refused + busy
    metrics = as_metrics(engine.stats)
    assert metrics["rollout/search_http_timeout"] == counts["http_timeout"]
    assert metrics["rollout/search_http_attempts"] == counts["http_attempts"]
    return took, searches, retriever


def test_faults_lose_no_trajectory(make_engine, questions, assert_same, fake_retriever):
    run_under_faults(make_engine, questions, assert_same, fake_retriever, faults=60, samples=5)


@pytest.mark.slow
def test_a_thousand_faults_lose_no_trajectory(make_engine, questions, assert_same, fake_retriever):
    took, searches, retriever = run_under_faults(
        make_engine, questions, assert_same, fake_retriever, faults=1000, samples=60
    )
    # Each search within its bound, on so many threads; and rollouts around them.
    assert took < searches * retriever.bound_seconds / 16 + 120
    print(f"{took:.1f} s for {searches} searches and 1,000 faults")


def test_what_is_given_up_is_counted_and_within_its_time(make_engine, questions, fake_retriever):
    """Nobody ever answers: every search comes to nothing, as often as was configured."""
    with FaultyServer(fake_retriever(), lambda n, body: FAULTS[n % len(FAULTS)]) as server:
        retriever = client(server.url, attempts=2)
        engine = make_engine(
            retriever, passages=1, batch=1, threads=16, attempts=2, failure="empty",
            backoff_seconds=0.01,
        )  # fmt: skip
        began = time.monotonic()
        run = engine.run(questions, seed=1, samples=2)
        took = time.monotonic() - began
    searches = sum(len(t.searches) for t in run)
    assert len(run) == 2 * len(questions) and searches > 0
    assert all(not found for t in run for found in t.passages)
    assert engine.stats["search_failures"] == engine.stats["search_calls"] == searches
    # Twice by the tool, each time twice by the client.
    counts = retriever.counts()
    assert counts["http_given_up"] == 2 * searches and counts["http_attempts"] == 4 * searches
    assert took < searches * 2 * (retriever.bound_seconds + 0.1) + 60


def test_a_cache_saves_searches_and_tells(make_engine, questions, assert_same, fake_retriever):
    settings = dict(passages=1)
    plain = make_engine(fake_retriever(), **settings).run(questions, seed=1, samples=2)
    inner = fake_retriever()
    engine = make_engine(Cached(inner, MemoryStore(1 << 20), "index"), **settings)
    assert_same(engine.run(questions, seed=1, samples=2), plain)
    first, calls = dict(engine.stats), len(inner.calls)
    searches = sum(len(t.searches) for t in plain)
    assert first["search_cache_hits"] + first["search_cache_misses"] == searches
    # The same questions again: nothing is searched, and only this run is counted.
    assert_same(engine.run(questions, seed=1, samples=2), plain)
    assert len(inner.calls) == calls
    assert as_metrics(engine.stats)["rollout/search_cache_hit_rate"] == 1.0
    assert engine.stats["search_cache_hits"] == searches


def test_steps_of_training_reach_the_retriever(make_engine, questions, fake_retriever):
    """Noise follows the step, and another run, as an evaluation is, is without."""
    inner = fake_retriever()
    pool = [p for row in inner.search(["noise one", "noise two"], 3) for p in row]
    retriever = Noisy(inner, pool.__getitem__, len(pool), Schedule(0.0, 1.0, steps=10))
    engine = make_engine(retriever, passages=1)
    shares = []
    for step in (1, 10, 0):
        run = engine.run(questions, seed=1, samples=2, step=step)
        found = [p.text for t in run for row in t.passages for p in row]
        metrics = as_metrics(engine.stats)
        share = sum(text.startswith("on noise") for text in found) / len(found)
        assert metrics["rollout/search_noise_share"] == pytest.approx(share)
        shares.append(share)
    assert shares[1:] == [1.0, 0.0] and shares[0] < 0.5


def test_a_retriever_without_counts_tells_none(make_engine, questions):
    engine = make_engine()
    engine.run(questions[:2], seed=1)
    told = as_metrics(engine.stats)
    assert not [key for key in told if "search_cache" in key or "search_noise" in key]
