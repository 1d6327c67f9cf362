"""The cache of results: what it saves, whose entries it gives, its bound, and many writers."""

import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest

from sr1_jax.retrieval import Passage, open_retriever
from sr1_jax.retrieval.cache import Cached, cache_folder
from sr1_jax.retrieval.cache_stores import DiskStore, MemoryStore
from sr1_jax.retrieval.settings import RETRIEVAL

WRITER = Path(__file__).parent / "cache_writer.py"


@pytest.fixture(params=["memory", "disk"])
def make_store(request, tmp_path):
    """Function of the most bytes -> a store of either kind."""

    def make(most_bytes=1 << 20):
        if request.param == "memory":
            return MemoryStore(most_bytes)
        return DiskStore(tmp_path / "cache" / "results.sqlite", most_bytes)

    return make


def rates(retriever):
    counts = retriever.counts()
    return counts["cache_hits"], counts["cache_misses"]


def test_what_was_found_is_not_searched_again(make_store, fake_retriever):
    inner = fake_retriever()
    retriever = Cached(inner, make_store(), "index")
    first = retriever.search(["a", "b", "a"], 2)
    assert first == fake_retriever().search(["a", "b", "a"], 2)
    assert inner.calls == [["a", "b"]]  # nor twice in one call
    assert retriever.search(["b", "c"], 2) == fake_retriever().search(["b", "c"], 2)
    assert inner.calls[1:] == [["c"]]
    assert rates(retriever) == (1, 4)
    # Another k is another search.
    assert retriever.search(["a"], 1) == [first[0][:1]]
    assert rates(retriever) == (1, 5)


def test_results_are_the_caller_s_own(make_store, fake_retriever):
    retriever = Cached(fake_retriever(), make_store(), "index")
    one, two = retriever.search(["a", "a"], 1)
    one.clear()
    assert len(two) == 1 and len(retriever.search(["a"], 1)[0]) == 1


@pytest.mark.parametrize(
    "passage",
    [
        Passage("1", "T", "text", 1 / 3),
        Passage("", "é\ud800", "\x00\u2028🙂", -1e-300),
        Passage("2", "", "x" * 100_000, float("inf")),
    ],
)
def test_passages_come_back_bit_for_bit(make_store, fake_retriever, passage):
    retriever = Cached(fake_retriever(lambda *_: passage), make_store(), "index")
    assert retriever.search(["q\ud800"], 1) == retriever.search(["q\ud800"], 1) == [[passage]]
    assert rates(retriever) == (1, 1)


def test_nothing_found_is_kept_too(make_store, fake_retriever):
    retriever = Cached(fake_retriever(count=0), make_store(), "index")
    assert retriever.search(["a"], 3) == retriever.search(["a"], 3) == [[]]
    assert rates(retriever) == (1, 1)


def test_failures_are_not_kept(make_store, fake_retriever):
    retriever = Cached(fake_retriever(failures=1), make_store(), "index")
    with pytest.raises(ConnectionError):
        retriever.search(["a"], 1)
    assert len(retriever.search(["a"], 1)[0]) == 1


def test_a_wrong_number_of_results_is_an_error(make_store, fake_retriever):
    class Short(fake_retriever):
        def search(self, queries, k):
            return super().search(queries, k)[1:]

    with pytest.raises(RuntimeError, match="1 results came back for 2 queries"):
        Cached(Short(), make_store(), "index").search(["a", "b"], 1)


def test_another_index_finds_its_own(make_store, fake_retriever):
    store = make_store()
    one = Cached(fake_retriever(lambda *_: Passage("1", "", "one", 1.0)), store, "one")
    two = Cached(fake_retriever(lambda *_: Passage("2", "", "two", 1.0)), store, "two")
    for _ in range(2):
        assert (one.search(["a"], 1)[0][0].text, two.search(["a"], 1)[0][0].text) == ("one", "two")


def test_what_was_used_last_stays(make_store, monkeypatch):
    store, now = make_store(10_000), [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    for number in range(30):
        store.put({b"%02d" % number: b"x" * 998})
        now[0] += 100
        assert store.get([b"00"]) == {b"00": b"x" * 998}
        assert store.bytes <= 10_000
    kept = store.get([b"%02d" % number for number in range(30)])
    assert {b"00", b"29", b"28"} <= set(kept) and b"01" not in kept
    assert len(kept) >= 8


def test_more_than_it_holds(make_store):
    store = make_store(100)
    store.put({b"a": b"x" * 1000})
    assert store.bytes <= 100 and store.get([b"a"]) == {}


def test_a_file_outlives_its_process(tmp_path, fake_retriever):
    path = tmp_path / "results.sqlite"
    Cached(fake_retriever(), DiskStore(path, 1 << 20), "index").search(["a"], 1)
    inner = fake_retriever()
    assert Cached(inner, DiskStore(path, 1 << 20), "index").search(["a"], 1)[0][0].id == "a-1"
    assert inner.calls == []


def test_a_file_that_is_no_cache(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(ValueError, match=r"results\.sqlite is no cache .*delete it"):
        DiskStore(path, 1 << 20)
    with pytest.raises(OSError, match="no cache can be kept there"):
        DiskStore(tmp_path, 1 << 20)  # a folder


def test_a_store_that_breaks_costs_searches_only(tmp_path, fake_retriever, caplog):
    class Broken:
        def get(self, keys):
            raise sqlite3.OperationalError("disk I/O error")

        put = get

    retriever = Cached(fake_retriever(), Broken(), "index")
    for _ in range(3):
        assert retriever.search(["a"], 1)[0][0].id == "a-1"
    assert rates(retriever) == (0, 3) and retriever.counts()["cache_errors"] == 6
    assert caplog.text.count("disk I/O error") == 1


def test_a_writer_that_holds_the_file_is_waited_for(tmp_path):
    path = tmp_path / "results.sqlite"
    store = DiskStore(path, 1 << 20)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    assert store.get([b"a"]) == {}  # readers do not wait
    store.put({b"a": b"1"})
    assert store.get([b"a"]) == {b"a": b"1"}
    other.close()


def test_many_threads_share_a_store(make_store, fake_retriever):
    retriever = Cached(fake_retriever(), make_store(1 << 14), "index")  # so small that it drops
    wrong = []

    def ask(seed):
        for number in range(60):
            query = f"q{(seed * 7 + number) % 80}"
            if [p.id for p in retriever.search([query], 2)[0]] != [f"{query}-1", f"{query}-2"]:
                wrong.append(query)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = retriever.counts()
    assert not wrong and counts["cache_errors"] == 0
    assert counts["cache_hits"] + counts["cache_misses"] == 480 and counts["cache_hits"] > 50


def test_two_processes_write_at_once(tmp_path, fake_retriever):
    """Each finds only what it should, no write fails, and the file stays within its bound."""
    import subprocess

    path, most = tmp_path / "results.sqlite", 1 << 17
    writers = [
        subprocess.Popen(
            [sys.executable, WRITER, path, str(most), str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(2)
    ]
    told = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    for wrong, errors, hits in told:
        assert (wrong, errors) == ("0", "0") and int(hits) > 100
    store = DiskStore(path, most)
    assert 0 < store.bytes <= most
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sums = "SELECT SUM(length(key) + length(value)) FROM results"
        assert connection.execute(sums).fetchone()[0] == store.bytes
    connection.close()


# As a setting


class Known:
    """A retriever that says what it is."""

    fingerprint = "known"

    def search(self, queries, k):
        return [[Passage(query, "", query, 1.0)] for query in queries]


def make_known(config, corpus, index):
    return Known()


def make_unknown(config, corpus, index):
    known = Known()
    known.fingerprint = ""
    return known


def settings(maker, kind, **cache):
    config = RETRIEVAL.defaults()
    config.kind = f"test_cache:{maker}"
    config.cache.update({"kind": kind} | cache)
    return config


def test_opened_by_setting(tmp_path):
    for expected in ((0, 1), (1, 0)):
        config = settings("make_known", "disk", folder=str(tmp_path / "c"))
        retriever = open_retriever(config)
        retriever.search(["a"], 1)
        assert rates(retriever) == expected
        assert retriever.fingerprint == "known"
    assert not hasattr(open_retriever(settings("make_known", "none")), "counts")


def test_only_a_cache_in_memory_for_who_does_not_say_what_it_is(tmp_path):
    open_retriever(settings("make_unknown", "memory"))
    with pytest.raises(ValueError, match=r"no fingerprint\): use retrieval\.cache\.kind='memory'"):
        open_retriever(settings("make_unknown", "disk", folder=str(tmp_path)))


def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder({"folder": ""}) == tmp_path / "sr1_jax" / "retrieval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder({"folder": ""}) == Path.home() / ".cache" / "sr1_jax" / "retrieval"
    with pytest.raises(
        ValueError, match=r"retrieval\.cache\.folder=gs://b/c: .* a folder on a disk"
    ):
        cache_folder({"folder": "gs://b/c"})
