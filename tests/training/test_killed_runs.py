"""Deterministic runs killed at random moments, over and over, are the run they would have been."""

import json
import random
import signal
import statistics
import time
from pathlib import Path

import pytest
from deterministic_runs import alone, assert_equal_runs, wait_for

from sr1_jax.evaluation.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("importable")]
HERE = Path(__file__).parent
# Whoever writes a checkpoint is killed within this time.
SAVING_SECONDS = 0.05


class Case:
    """A run to be killed.

    Args:
        config: its file.
        workdir: of the base policy that it starts from.
        flags: further ones.
    """

    def __init__(self, config, base, *flags):
        self.command = [
            "-m", "sr1_jax.train", f"--config={config}", f"--config.base.workdir={base}",
            "--config.warm_start.phases=()", "--config.rollout.deterministic=True",
            "--config.retrieval.kind=delayed_search:open_delayed", "--config.checkpoint.every=1",
            "--config.checkpoint.keep=2", "--config.evaluation.every=0",
            "--config.evaluation.final_questions=0", "--config.log.groups=100", *flags,
        ]  # fmt: skip

    def at(self, workdir):
        return [*self.command, f"--workdir={workdir}"]


def is_saving(workdir):
    """Whether a checkpoint is being written."""
    try:
        return any(not path.name.isdigit() for path in (workdir / "checkpoints").iterdir())
    except FileNotFoundError:
        return False


def kill_at_random(running, workdir, chance, seconds_to_first_step, step_seconds):
    """Kills one of the processes at a random moment; says whether it was still running.

    Half of the moments are anywhere from the start to a few steps, the others while a checkpoint
    is written.
    """
    if chance.random() < 0.5:
        moment = chance.uniform(0.2, seconds_to_first_step + 2 * step_seconds)
        wait_for(lambda: False, running, moment)
    else:
        wait_for(lambda: is_saving(workdir), running, 20 * seconds_to_first_step)
        time.sleep(chance.uniform(0, SAVING_SECONDS))
    victim = chance.choice(running)
    alive = victim.poll() is None
    victim.send_signal(signal.SIGKILL)
    for process in running:
        process.wait(120)  # the others end with it, or find that it never came
    return alive


def seconds_of(workdir):
    """Those of a step, at the median."""
    found = sorted(row["seconds/step"] for row in read_metrics(workdir))
    return found[len(found) // 2]


def killed_run(case, workdir, kills, chance, whole, start):
    """Runs `case`, killing it so many times; returns how many kills hit a running process."""
    first, step = whole
    hits = 0
    for number in range(20 * kills):
        running = start(case.at(workdir), number)
        if hits < kills:
            hits += kill_at_random(running, workdir, chance, first, step)
            continue
        assert [process.wait(600) for process in running] == [0] * len(running)
        return hits
    raise AssertionError(f"{hits} kills in {number} starts")


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    """A policy that has learned to search before it answers."""
    workdir = tmp_path_factory.mktemp("tiny") / "base"
    command = ["-m", "sr1_jax.train", f"--config={HERE / 'cluster_config.py'}",
               f"--workdir={workdir}", "--config.steps=0"]  # fmt: skip
    assert alone(command, workdir.parent / "base.log").wait(300) == 0
    return HERE / "cluster_config.py", workdir


def unbroken_run(case, workdir, steps):
    """The run without a break: its workdir, and (seconds to the first step, seconds of a step)."""
    began = time.monotonic()
    running = alone(case.at(workdir), workdir.parent / "whole.log")
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), [running], 300)
    first = time.monotonic() - began
    assert running.wait(900) == 0, (workdir.parent / "whole.log").read_text()[-3000:]
    rows = read_metrics(workdir)
    assert len(rows) == steps and len({row["policy/loss"] for row in rows}) == steps
    return workdir, (first, seconds_of(workdir))


def test_killed_ten_times(tiny_base, programs, tmp_path):
    check_killed(tiny_base, tmp_path, kills=10, steps=40, searches=0.2)


def test_demo_killed_thirty_times(programs, tmp_path):
    """The policy of the demo, after its warm start."""
    config, base = HERE.parents[1] / "configs" / "demo.py", tmp_path / "base"
    command = ["-m", "sr1_jax.train", f"--config={config}", f"--workdir={base}", "--config.steps=0"]
    assert alone(command, tmp_path / "base.log").wait(1800) == 0
    flags = ("--config.questions=32", "--config.rollout.slots=32")
    check_killed((config, base), tmp_path, kills=30, steps=80, searches=1.0, flags=flags)


def test_two_processes_killed_five_times(tiny_base, programs, tmp_path, start_processes):
    config, base = tiny_base
    case = Case(config, base, "--config.steps=20")

    def start(command, number):
        flags = lambda process, coordinator: (  # noqa: E731
            *command, f"--coordinator={coordinator}", "--processes=2",
            f"--process={process}", "--join_seconds=30",
        )  # fmt: skip
        return start_processes(flags).running

    began = time.monotonic()
    whole = tmp_path / "whole"
    running = start(case.at(whole), 0)
    wait_for(lambda: (whole / "metrics.jsonl").exists(), running, 300)
    first = time.monotonic() - began
    assert [process.wait(600) for process in running] == [0, 0]
    chance = random.Random(1)
    workdir = tmp_path / "killed"
    assert killed_run(case, workdir, 5, chance, (first, seconds_of(whole)), start) == 5
    assert_equal_runs(workdir, whole, 20)


def check_killed(base, folder, *, kills, steps, searches, flags=()):
    config, base = base
    case = Case(config, base, f"--config.steps={steps}", *flags)
    whole, seconds = unbroken_run(case, folder / "whole", steps)
    rows = read_metrics(whole)
    assert statistics.mean(row["searches"] for row in rows) >= searches
    workdir, chance = folder / "killed", random.Random(0)
    log = folder / "killed.log"
    killed_run(case, workdir, kills, chance, seconds, lambda c, _: [alone(c, log)])
    assert_equal_runs(workdir, whole, steps)
    print(json.dumps({"kills": kills, "seconds to first step and a step": seconds}))
