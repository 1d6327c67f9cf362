"""Noise: its schedule, what is replaced and by what; and retrievers that are worse on purpose."""

import itertools
import json
import time

import numpy as np
import pytest

from sr1_jax.retrieval import BM25Retriever, Passage, check_retrieval, open_retriever
from sr1_jax.retrieval.hooks import Wrapper, at_step, counts_of, unwrapped
from sr1_jax.retrieval.noise import Noisy, Schedule, draw_passages
from sr1_jax.retrieval.settings import RETRIEVAL


class Shelf:
    """Finds the first k of its passages for any query; gives any by number."""

    fingerprint = "shelf"

    def __init__(self, size=200):
        self.passages = [Passage(str(i), f"T{i}", f"text {i}", 0.0) for i in range(size)]

    def __len__(self):
        return len(self.passages)

    def passage(self, number):
        return self.passages[number]

    def search(self, queries, k):
        return [self.passages[:k] for _ in queries]


def make_shelf(config, corpus, index):
    return Shelf()


def noisy(share, *, seed=0, size=200):
    shelf = Shelf(size)
    return Noisy(shelf, shelf.passage, size, Schedule(share, evaluation=share), seed)


def ids(found):
    return [[passage.id for passage in row] for row in found]


# The schedule


def test_the_schedule_is_that_of_zerosearch():
    """By hand, with b = 4: (2 - 1) / 3 of the way at half time."""
    schedule = Schedule(0.0, 0.75, steps=200)
    assert schedule.share(100) == pytest.approx(0.25)
    assert schedule.share(200) == schedule.share(10_000) == pytest.approx(0.75)
    assert schedule.share(1) == pytest.approx(0.75 * (4**0.005 - 1) / 3)
    # The other way, the share falls as it would rise.
    falling = Schedule(0.75, 0.0, steps=200)
    assert falling.share(100) == pytest.approx(0.5)


@pytest.mark.parametrize("base", [0.25, 1.0, 4.0, 30.0])
def test_the_schedule_against_its_formula(base):
    schedule, m = Schedule(0.1, 0.6, steps=50, base=base), 50
    for i in range(1, m + 1):
        # The limit for b = 1, where the formula is 0 / 0, from a base next to it.
        b = base if base != 1 else 1 + 1e-6
        want = 0.1 + np.expm1(np.log(b) * i / m) / (b - 1) * 0.5
        assert schedule.share(i) == pytest.approx(want, abs=1e-6)


def test_a_share_that_stays():
    schedule = Schedule(0.3, evaluation=0.1)
    assert [schedule.share(step) for step in (0, 1, 500)] == [0.1, 0.3, 0.3]


# What is replaced


def test_the_share_is_replaced():
    queries = [f"q{i}" for i in range(2000)]
    for share in (0.0, 0.2, 0.7, 1.0):
        retriever = noisy(share)
        found = retriever.search(queries, 3)
        replaced = np.mean([i != w for row in ids(found) for i, w in zip(row, "012")])
        # Three standard errors of 6,000 draws.
        assert replaced == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 6000) + 1e-9)
        counts = retriever.counts()
        assert counts["noise_passages"] == 6000
        assert counts["noise_replaced"] == pytest.approx(replaced * 6000)


def test_random_passages_are_random():
    """All of the corpus comes up, about as often; never what the query found, nothing twice."""
    found = ids(noisy(1.0, size=50).search([f"q{i}" for i in range(3000)], 3))
    assert all(len(set(row)) == 3 and not set(row) & {"0", "1", "2"} for row in found)
    counts = np.bincount([int(i) for row in found for i in row], minlength=50)
    expected = 9000 / 47
    assert not counts[:3].any()
    chi_square = ((counts[3:] - expected) ** 2 / expected).sum()
    assert chi_square < 46 + 5 * np.sqrt(2 * 46)


def test_scores_stay_so_that_order_does():
    shelf = Shelf()
    shelf.passages[:3] = [Passage(str(i), "", "x", 9.0 - i) for i in range(3)]
    found = Noisy(shelf, shelf.passage, 200, Schedule(1.0, evaluation=1.0)).search(["a"], 3)[0]
    assert [passage.score for passage in found] == [9.0, 8.0, 7.0]


def test_what_is_drawn_does_not_depend_on_order():
    queries = [f"q{i}" for i in range(40)]
    together = noisy(0.5).search(queries, 3)
    retriever = noisy(0.5)
    alone = {query: retriever.search([query], 3)[0] for query in reversed(queries)}
    assert together == [alone[query] for query in queries]
    assert together != noisy(0.5, seed=1).search(queries, 3)


def test_more_noise_keeps_what_less_replaced():
    rows = [ids(noisy(share).search(["a", "b", "c", "d"], 5)) for share in (0.2, 0.5, 0.9)]
    for less, more in itertools.pairwise(rows):
        for before, after in zip(itertools.chain(*less), itertools.chain(*more)):
            assert before == after or before in "01234"


def test_steps_of_training_move_the_share():
    shelf = Shelf()
    retriever = Noisy(shelf, shelf.passage, 200, Schedule(0.0, 1.0, steps=10, evaluation=0.0))
    first = retriever.search(["a"], 3)
    assert ids(first) == [["0", "1", "2"]]
    at_step(retriever, 10)
    assert not set(ids(retriever.search(["a"], 3))[0]) & {"0", "1", "2"}
    at_step(retriever, 0)
    assert retriever.search(["a"], 3) == first


def test_fewer_results_and_none():
    assert noisy(1.0).search([], 3) == []
    short = Wrapper(Shelf())
    short.search = lambda queries, k: [[] for _ in queries]
    assert Noisy(short, Shelf().passage, 200, Schedule(1.0, evaluation=1.0)).search(["a"], 3) == [
        []
    ]


def test_a_corpus_without_another_passage_is_left_alone():
    assert ids(noisy(1.0, size=2).search(["a"], 3)) == [["0", "1"]]


# As a setting


def settings(maker="make_shelf", **noise):
    config = RETRIEVAL.defaults()
    config.kind = f"test_noise:{maker}" if ":" not in maker and maker.startswith("make") else maker
    config.noise.update(noise)
    return config


def write_corpus(path, count):
    rows = ({"id": str(i), "title": f"T{i}", "text": f"word{i % 7} common"} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_opened_by_setting():
    assert isinstance(open_retriever(settings()), Shelf)  # without noise there is nothing around it
    plain = open_retriever(settings(start=0.5))
    other = open_retriever(settings(start=0.5, seed=1))
    assert isinstance(plain, Noisy)
    prints = {plain.fingerprint, other.fingerprint, Shelf.fingerprint}
    assert len(prints) == 3
    assert plain.fingerprint == open_retriever(settings(start=0.5)).fingerprint


def test_bm25_draws_from_its_corpus(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 50)
    config = settings("bm25", start=1.0)
    retriever = open_retriever(config, corpus, tmp_path / "index")
    clean = retriever.search(["common"], 3)
    at_step(retriever, 1)
    dirty = retriever.search(["common"], 3)
    assert not set(ids(dirty)[0]) & set(ids(clean)[0])
    assert isinstance(unwrapped(retriever), BM25Retriever)
    assert retriever.corpus_sha256 == unwrapped(retriever).corpus_sha256


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match=r"retrieval\.noise needs random passages.*data\.corpus"):
        open_retriever(settings("empty", start=0.5))


def test_an_end_needs_steps():
    with pytest.raises(
        ValueError, match=r"^retrieval\.noise\.end=0\.5 is reached after retrieval\.n"
    ):
        check_retrieval(settings(end=0.5))


def test_passages_are_drawn_evenly(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 40)
    assert {p.id for p in draw_passages(corpus, 100, 0)} == {str(i) for i in range(40)}
    counts = np.zeros(40)
    for seed in range(300):
        drawn = draw_passages(corpus, 10, seed)
        assert len({p.id for p in drawn}) == 10
        counts[[int(p.id) for p in drawn]] += 1
    # 300 draws of 10 in 40: 75 each, standard deviation 7.5.
    assert np.abs(counts - 75).max() < 4 * 7.5
    assert draw_passages(corpus, 10, 3) == draw_passages(corpus, 10, 3)


# Worse on purpose


def test_a_retriever_that_finds_nothing():
    retriever = open_retriever(settings("empty"))
    assert retriever.search(["a", "b"], 3) == [[], []]
    with pytest.raises(ValueError, match="k must be at least 1"):
        retriever.search(["a"], 0)


def test_a_delay():
    config = settings()
    config.delay_seconds = 0.2
    retriever = open_retriever(config)
    began = time.monotonic()
    assert ids(retriever.search(["a"], 2)) == [["0", "1"]]
    assert 0.2 <= time.monotonic() - began < 2
    assert retriever.fingerprint == "shelf" and counts_of(retriever) == {}


def test_all_at_once():
    """A cache saves the delay, and holds what was found without noise."""
    config = settings(start=0.5)
    config.delay_seconds, config.cache.kind = 0.2, "memory"
    retriever = open_retriever(config)
    clean = retriever.search(["a", "b", "c"], 3)
    began = time.monotonic()
    at_step(retriever, 1)
    dirty = retriever.search(["a", "b", "c"], 3)
    assert time.monotonic() - began < 0.15
    assert dirty == noisy(0.5).search(["a", "b", "c"], 3) != clean
    counts = retriever.counts()
    assert (counts["cache_hits"], counts["cache_misses"], counts["noise_passages"]) == (3, 3, 18)
