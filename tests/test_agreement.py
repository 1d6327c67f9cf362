"""Several real processes: what they tell each other, and that they end together."""

import pickle
import time
from pathlib import Path

import pytest
from absl import flags

from sr1_jax import agreement, cluster

WORKER = Path(__file__).parent / "agreement_worker.py"


@pytest.fixture
def start(start_processes, tmp_path):
    """Function of (what to do, count) -> running processes."""

    def start(do, count=2):
        return start_processes(
            lambda process, coordinator: (WORKER, do, tmp_path, coordinator, count, process),
            count=count,
        )

    return start


def test_what_processes_tell_each_other(start, tmp_path):
    processes = start("tell")
    processes.check()
    found = [pickle.loads((tmp_path / f"{i}.pkl").read_bytes()) for i in range(2)]
    for process in range(2):
        assert found[process] == {
            "first": "of 0",
            "gathered": [(5, 0), (3_000_005, 1)],
            # On a shared file system process 0 leads, on its own each does.
            "leads": [0, process],
            "is_first": process == 0,
            # The second finds what the first has made, on its own it makes it.
            "made": [process == 0, True],
            "left": ["data", "data"],
            "difference": (
                "The config of process 1: a.b is 1, but 0 in process 0. Start all processes with "
                "the same flags and the same files."
            ),
        }
    heard = ["only process 0 is heard" in processes.out(process) for process in range(2)]
    assert heard == [True, False]


def test_an_error_of_one_ends_all_with_its_message(start):
    processes = start("fail")
    assert processes.codes(30) == [2, 2]
    assert "error: process 1 failed: questions.jsonl:7: no answer\n" in processes.err(0)
    assert "error: process 1: questions.jsonl:7: no answer\n" in processes.err(1)


@pytest.mark.slow
def test_a_defect_in_the_first_ends_all(start):
    processes = start("surprise", count=3)
    assert processes.codes(40) == [2, 2, 2]
    assert "Traceback" in processes.err(0) and "KeyError: 'lost'" in processes.err(0)
    for process in (1, 2):
        assert "error: process 0 failed: KeyError('lost')\n" in processes.err(process)


@pytest.mark.slow
@pytest.mark.parametrize(("do", "dead"), [("die", 1), ("die_first", 0)])
def test_when_one_is_killed_the_other_ends(start, do, dead):
    processes = start(do)
    codes = processes.codes(60)
    assert codes[dead] == -9 and codes[1 - dead] not in (0, -9)
    said = processes.err(1 - dead)
    # JAX's client, our own thread or the channel, whichever misses process 0 first.
    missed = ["process 0 does not answer any more", "another task died"] if dead == 0 else []
    assert any(text in said for text in [f"process {dead} closed its channel", *missed])


@pytest.mark.slow
def test_one_that_never_starts(start_processes, tmp_path):
    began = time.monotonic()
    processes = start_processes(
        lambda process, coordinator: (WORKER, "late", tmp_path, coordinator, 2, process), count=1
    )
    assert processes.codes(60) == [2]
    assert time.monotonic() - began >= 5
    assert "this process waited 5 s for the others (2 at 127.0.0.1:" in processes.err(0)


@pytest.mark.slow
def test_different_counts(start_processes, tmp_path):
    processes = start_processes(
        lambda process, coordinator: (WORKER, "tell", tmp_path, coordinator, 2 + process, process)
    )
    assert processes.codes(60) == [2, 2]
    message = "started with --processes=3, process 0 with 2."
    assert f"error: process 1: {message}" in processes.err(1)
    assert f"error: process 1 failed: {message}" in processes.err(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "--processes and --process need --coordinator=HOST:PORT"),
        (["--process=0"], "--processes and --process need --coordinator=HOST:PORT"),
        (["--distributed", "--processes=2"], "need --coordinator=HOST:PORT"),
        (["--coordinator=host"], "--coordinator must be HOST:PORT, not 'host'"),
        (["--coordinator=:80"], "--coordinator must be HOST:PORT, not ':80'"),
        (["--coordinator=h:1"], "--coordinator needs --processes, at least 1, not 0"),
        (
            ["--coordinator=h:1", "--processes=2", "--process=2"],
            "--coordinator needs --process, 0 to 1 with --processes=2, not 2",
        ),
        (["--coordinator=h:1", "--processes=2"], "--process, 0 to 1 .* not -1"),
        (["--distributed", "--join_seconds=0"], "--join_seconds must be at least 1, not 0"),
    ],
)
def test_flags_that_cannot_work(arguments, message):
    values = flags.FlagValues()
    cluster.define_flags(values)
    values(["program", *arguments])
    with pytest.raises(ValueError, match=message):
        cluster.join_by_flags(values)
    assert not cluster.joined()


def test_one_process_needs_no_flags(tmp_path):
    values = flags.FlagValues()
    cluster.define_flags(values)
    values(["program"])
    cluster.join_by_flags(values)
    assert not cluster.joined() and cluster.is_first()
    assert agreement.gather([1]) == [[1]] and agreement.from_first(3) == 3
    agreement.check_same("The config", {"a": 1})
    assert agreement.once_a_file_system(tmp_path / "none", lambda: "made") == "made"
    assert not (tmp_path / "none").exists()
