"""Stages run in order, each once, whatever ended the experiment in between."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from sr1_jax.experiments.stages import (
    Stage,
    cluster_flags,
    print_commands,
    run_stages,
    seeds_of,
)


class Script(Stage):
    """A stage that runs Python code; it notes its name in `ran.txt` first."""

    def command(self, folder):
        note = f"open({str(folder / 'ran.txt')!r}, 'a').write({self.name + chr(10)!r});"
        return [sys.executable, "-c", note + self.flags[0]]


def stages(*codes):
    return [Script(f"stage_{i}", "train", (code,), f"# {i}\n") for i, code in enumerate(codes)]


def seconds_of(stage, folder):
    """As noted; None while it is not done."""
    path = stage.record_path(folder)
    return json.loads(path.read_text())["seconds"] if path.is_file() else None


def ran(folder):
    path = folder / "ran.txt"
    return path.read_text().split() if path.exists() else []


def test_each_stage_runs_once_and_in_order(tmp_path, capsys):
    plan = stages("print('one')", "print('two')")
    run_stages(plan, tmp_path)
    run_stages(plan, tmp_path)
    assert ran(tmp_path) == ["stage_0", "stage_1"]
    assert plan[1].log_path(tmp_path).read_text() == "two\n"
    assert plan[0].config_path(tmp_path).read_text() == "# 0\n"
    assert 0 <= seconds_of(plan[0], tmp_path) < 60
    assert "2 of 2 stages are done" in capsys.readouterr().out


def test_a_stage_that_fails_is_told_and_is_the_next_to_run(tmp_path, capsys):
    good = tmp_path / "good"
    fails = f"import os, sys; print('\\x1b[2Jwhy'); sys.exit(not os.path.exists({str(good)!r}))"
    plan = stages("pass", fails, "pass")
    with pytest.raises(RuntimeError, match=r"stage_1 failed; the ends of their logs are above"):
        run_stages(plan, tmp_path)
    shown = capsys.readouterr().err
    assert "stage_1 failed with exit code 1: " in shown
    assert "why" in shown and "\x1b" not in shown
    assert ran(tmp_path) == ["stage_0", "stage_1"] and seconds_of(plan[1], tmp_path) is None
    good.touch()
    run_stages(plan, tmp_path)
    assert ran(tmp_path) == ["stage_0", "stage_1", "stage_1", "stage_2"]


@pytest.mark.parametrize("change", ["flags", "config"])
def test_a_stage_done_with_other_settings_is_refused_before_any_runs(tmp_path, change):
    run_stages(stages("pass"), tmp_path)
    first = stages("pass ")[0] if change == "flags" else Script("stage_0", "train", ("pass",), "#")
    with pytest.raises(ValueError, match=rf"stage_0 was done with other {change}"):
        run_stages([first, *stages("pass", "pass")[1:]], tmp_path)
    assert ran(tmp_path) == ["stage_0"]


def test_a_damaged_record_is_named(tmp_path):
    (stage,) = stages("pass")
    stage.record_path(tmp_path).parent.mkdir()
    stage.record_path(tmp_path).write_text("{")
    with pytest.raises(ValueError, match=r"stage_0\.json is damaged"):
        run_stages([stage], tmp_path)


def test_sigterm_ends_the_stage_first(tmp_path):
    """The stage saves what it has; nothing counts as done, and nothing else is started."""
    saves = (
        "import signal, sys, time\n"
        f"def save(*_): open({str(tmp_path / 'saved')!r}, 'w'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w')\n"
        "time.sleep(60)"
    )

    def tell():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    plan = stages(saves, "pass")
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=tell).start()
    with pytest.raises(InterruptedError, match=r"has ended\. Start again"):
        run_stages(plan, tmp_path)
    assert (tmp_path / "saved").exists() and seconds_of(plan[0], tmp_path) is None
    assert ran(tmp_path) == ["stage_0"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_groups_run_side_by_side_each_in_its_order(tmp_path):
    """The first stage of each group waits for that of the other."""
    waits = (
        "import os, time\n"
        "open({mine!r}, 'w')\n"
        "while not os.path.exists({other!r}): time.sleep(0.02)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    plan = [
        Script("a1", "train", (waits.format(mine=a, other=b),), "", "a"),
        Script("a2", "train", ("pass",), "", "a"),
        Script("b1", "train", (waits.format(mine=b, other=a),), "", "b"),
        Script("b2", "train", ("pass",), "", "b"),
    ]
    run_stages(plan, tmp_path, jobs=2)
    names = ran(tmp_path)
    assert sorted(names) == ["a1", "a2", "b1", "b2"]
    assert names.index("a1") < names.index("a2") and names.index("b1") < names.index("b2")


@pytest.mark.parametrize("jobs", [1, 2])
def test_other_groups_go_on_after_a_failure(tmp_path, jobs):
    plan = [
        Script("bad", "train", ("import sys; sys.exit(3)",), "", "a"),
        Script("after", "train", ("pass",), "", "a"),
        Script("other", "train", ("import time; time.sleep(0.3)",), "", "b"),
        Script("last", "train", ("pass",), "", "b"),
    ]
    with pytest.raises(RuntimeError, match=r"^bad failed"):
        run_stages(plan, tmp_path, jobs=jobs)
    assert sorted(ran(tmp_path)) == ["bad", "last", "other"]
    assert seconds_of(plan[0], tmp_path) is None and seconds_of(plan[3], tmp_path) > 0


def test_the_command_of_a_stage(tmp_path, capsys):
    stage = Stage("a", "evaluate", ("--workdir=a b", "--limit=3"), "text")
    command = stage.command(tmp_path)
    assert command == [
        sys.executable, "-m", "sr1_jax.evaluate", f"--config={tmp_path / 'configs' / 'a.py'}",
        "--workdir=a b", "--limit=3",
    ]  # fmt: skip
    print_commands([stage], tmp_path)
    assert capsys.readouterr().out.startswith("python -m sr1_jax.evaluate --config=")
    # What an experiment that is under way reads stays as it is.
    assert not stage.config_path(tmp_path).exists()
    assert (tmp_path / "dry_run" / "a.py").read_text() == "text"
    stage.record_path(tmp_path).parent.mkdir()
    stage.record_path(tmp_path).write_text(json.dumps(stage.says() | {"seconds": 1.5}))
    print_commands([stage], tmp_path)
    assert capsys.readouterr().out.startswith("# done: python -m sr1_jax.evaluate")


def test_cluster_flags_are_handed_on():
    argv = "table --seeds=1 --coordinator a:1 --processes=2 --distributed -process=1".split()
    assert cluster_flags(argv) == [
        "--coordinator", "a:1", "--processes=2", "--distributed", "-process=1",
    ]  # fmt: skip
    assert cluster_flags(["table", "--config.process=3"]) == []


def test_seeds():
    assert seeds_of(["2", "0"]) == (2, 0)
    for bad in ([], ["a"], ["-1"], ["1", "1"], [""]):
        with pytest.raises(ValueError, match="--seeds="):
            seeds_of(bad)
