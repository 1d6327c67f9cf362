"""The lines for the person who waits."""

import io

import pytest
import rich
from rich.console import Console

from sr1_jax.evaluation import metrics, progress
from sr1_jax.evaluation.progress import Live, counting, duration, working


@pytest.fixture
def clock(monkeypatch):
    """Sets the times that are read one after the other."""

    def set_times(*times):
        times = iter(times)
        monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times) + 100)

    return set_times


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns; what it got is in its `file`."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    return console


def test_live_prints_at_intervals_and_at_the_end(capsys, clock):
    clock(1.0, 2.0, 7.0, 8.0)
    live = Live("training", 4, every_seconds=5.0)
    for step in range(1, 5):
        live.update(step, reward=step / 8, response_tokens=12.3456)
    live.close()
    assert capsys.readouterr().out.splitlines() == [
        "training 1/4  reward 0.125  response tokens 12.3",
        "training 3/4  reward 0.375  response tokens 12.3  3.0 s left",  # of 1 and 5 seconds
        "training 4/4  reward 0.5  response tokens 12.3  0.0 s left",
    ]


def test_the_time_left_does_not_count_compilation(capsys, clock):
    """A first step of 500 s, then steps of 2 s, of which one evaluates or compiles for 300 s."""
    times = [500.0]
    for step in range(2, 51):
        times.append(times[-1] + (300.0 if step == 20 else 2.0))
    clock(*times)
    live = Live("training", 100, every_seconds=0.0)
    for step in range(1, 51):
        live.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training 1/100"
    assert lines[1] == "training 2/100  3 min left"
    assert lines[-1] == "training 50/100  100 s left"
    assert all(line.endswith(("min left", "s left")) for line in lines[1:])


def test_the_time_left_follows_recent_steps(capsys, clock):
    times = [0.0]
    for step in range(1, 200):
        times.append(times[-1] + (1.0 if step < 100 else 9.0))
    clock(*times)
    live = Live("training", 210, every_seconds=0.0)
    for step in range(1, 201):
        live.update(step)
    assert capsys.readouterr().out.splitlines()[-1] == "training 200/210  90 s left"


def test_live_counts_what_is_left_from_where_it_started(capsys, clock):
    clock(0.0, 10.0)
    live = Live("training", 20, start=10, every_seconds=0.0)
    live.update(12)
    live.update(14)
    assert capsys.readouterr().out.splitlines()[-1] == "training 14/20  30 s left"


def test_live_prints_no_control_characters(capsys):
    Live("\x1b[2Jtraining", 2).update(1)
    assert capsys.readouterr().out.startswith("[2Jtraining 1/2")


def test_live_at_a_terminal(terminal):
    live = Live("train[red]ing", 3)
    for step in (1, 2, 3):
        live.update(step, reward=0.5)
    live.close()
    text = terminal.file.getvalue()
    assert "train[red]ing" in text and "3/3" in text and "reward 0.5" in text and "s left" in text


def test_live_is_still_found_where_it_was():
    assert metrics.Live is Live


def test_work_is_told_before_it_begins(capsys, clock):
    clock(0.0, 74.6)
    with working("loading the \x1b[2Jpolicy"):
        assert capsys.readouterr().out == "loading the [2Jpolicy …\n"
    assert capsys.readouterr().out == "loading the [2Jpolicy: 75 s\n"


def test_short_work_leaves_one_line(capsys, clock):
    clock(0.0, 0.9)
    with working("loading"):
        pass
    assert capsys.readouterr().out == "loading …\n"


def test_work_that_failed_took_no_time(capsys, clock):
    clock(0.0, 70.0)
    with pytest.raises(OSError), working("loading"):
        raise OSError
    assert capsys.readouterr().out == "loading …\n"


def test_a_spinner_at_a_terminal(terminal, capsys):
    with working("loading [red]"), working("reading"):
        pass
    assert "loading [red] …" in terminal.file.getvalue()
    assert capsys.readouterr().out == ""


def test_counting_tells_what_is_done(capsys, clock):
    clock(0.0, 10.0, 20.0, 30.0)
    with counting("asking \x1b[2Jnq", 20, start=10) as live:
        assert capsys.readouterr().out == "asking [2Jnq …\n"
        live.update(15, EM=0.25)
        live.update(20, EM=0.3)
    assert capsys.readouterr().out.splitlines() == [
        "asking [2Jnq 15/20  EM 0.25",
        "asking [2Jnq 20/20  EM 0.3  0.0 s left",
        "asking [2Jnq: 30 s",
    ]


def test_counting_at_a_terminal_ends_its_bar(terminal, capsys):
    with pytest.raises(KeyboardInterrupt), counting("asking [red]", 4) as live:
        live.update(2, EM=0.5)
        raise KeyboardInterrupt
    text = terminal.file.getvalue()
    assert "asking [red]" in text and "2/4" in text and "EM 0.5" in text
    assert capsys.readouterr().out == ""
    Live("another", 2).close()  # a bar that was not ended would refuse it


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (8.44, "8.4 s"),
        (9.96, "10 s"),
        (119.0, "119 s"),
        (121.0, "2 min"),
        (7000.0, "117 min"),
        (7400.0, "2 h 03 min"),
        (12_000.0, "3 h 20 min"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
