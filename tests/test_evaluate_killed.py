"""Evaluations of a real policy that are killed with SIGKILL, and started again."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sr1_jax import train

CONFIG = Path(__file__).parent / "training" / "tiny_config.py"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose base policy is random, and two sets of its world's questions."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    arguments = [
        "train", f"--config={CONFIG}", f"--workdir={workdir}", "--config.steps=0",
        "--config.warm_start.phases=()", "--config.evaluation.final_questions=0",
    ]  # fmt: skip
    train.main(arguments)
    lines = (workdir / "data" / "heldout.jsonl").read_text().splitlines(keepends=True)
    (workdir / "one.jsonl").write_text("".join(lines[:9]))
    (workdir / "two.jsonl").write_text("".join(lines[9:16]))
    return workdir


def command(workdir, *flags):
    return [
        sys.executable, "-m", "sr1_jax.evaluate", f"--config={CONFIG}", f"--workdir={workdir}",
        f"--questions={workdir}/one.jsonl,{workdir}/two.jsonl",
        f"--corpus={workdir}/data/corpus.jsonl", "--method=search,direct", "--base",
        "--greedy=false", "--samples=2", "--config.rollout.slots=2",
        "--config.mesh.data=1", *flags,
    ]  # fmt: skip


def one_device():
    """The environment of a process with a single device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return os.environ | {"XLA_FLAGS": flags}


def finish(arguments):
    done = subprocess.run(arguments, env=one_device(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def kill_when(arguments, reached):
    """Starts a program and kills it once `reached()`; returns whether it was killed in time."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, env=one_device(), **silent)
    until = time.monotonic() + 300
    while process.poll() is None and not reached():
        assert time.monotonic() < until
        time.sleep(0.001)
    process.kill()
    return process.wait() == -9


def lines_in(folder):
    """Trajectories that are there, of sets that are finished and of those under way."""
    there = {}
    for name in os.listdir(folder) if folder.is_dir() else []:
        stem, under_way, _ = name.partition(".partial_")
        if not under_way and not name.endswith(".trajectories.jsonl"):
            continue
        try:
            lines = (folder / name).read_bytes().count(b"\n")
        except FileNotFoundError:
            continue
        stem = stem.removesuffix(".trajectories.jsonl")
        # For a moment, a set that is finished has both files; a first line says what is under way.
        there[stem] = max(there.get(stem, 0), lines - bool(under_way))
    return sum(there.values())


def without_speed(data):
    """A result less what depends on the clock and on this start."""
    if isinstance(data, list):
        return [without_speed(part) for part in data]
    if isinstance(data, dict):
        return {
            key: without_speed(value)
            for key, value in data.items()
            if not key.startswith("rollout/") and "seconds" not in key
        }
    return data


def contents(folder):
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found[path.name] = without_speed(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            rows = path.read_text().splitlines()
            found[path.name] = [without_speed(json.loads(row)) for row in rows]
        elif path.suffix == ".npz":
            with np.load(path) as file:
                kept = [key for key in file.files if "seconds" not in key]
                # As text: nan is not equal to itself.
                found[path.name] = {key: str(file[key].tolist()) for key in kept}
        else:
            # A column of seconds may be in it.
            found[path.name] = None
    return found


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_results(workdir):
    """Killed at moments that the clock draws: each start goes on, and asks nothing twice."""
    folder = workdir / "eval"
    finish(command(workdir))
    want = contents(folder)
    episodes = 2 * 2 * 16
    assert lines_in(folder) == episodes
    shutil.rmtree(folder)
    draw = random.Random(time.time_ns())
    moments = sorted(draw.sample(range(1, episodes), 3))
    for moment in moments:
        if not kill_when(command(workdir), lambda m=moment: lines_in(folder) >= m):
            pytest.fail(f"it was over before {moments}")
    there = lines_in(folder)
    assert there >= moments[-1]
    done = finish(command(workdir))
    assert contents(folder) == want, f"killed at {moments}"
    # What was there was not run again.
    run = sum(
        json.loads(path.read_text()).get("rollout/episodes", 0)
        for path in folder.glob("*.json")
        if "rollout/taken_up" in json.loads(path.read_text())
    )
    assert "from an earlier start" in done.stderr or "by an earlier start" in done.stderr
    assert run <= episodes - there + 2
    assert not [name for name in os.listdir(folder) if "partial" in name or "under_way" in name]


@pytest.mark.slow
def test_two_processes_take_up_what_one_has_left(workdir, start_processes):
    folder = workdir / "eval"
    shutil.rmtree(folder, ignore_errors=True)
    finish(command(workdir))
    want = contents(folder)
    shutil.rmtree(folder)
    assert kill_when(command(workdir), lambda: lines_in(folder) >= 5)

    def arguments(process, coordinator):
        return [
            *command(workdir)[1:], f"--coordinator={coordinator}", "--processes=2",
            f"--process={process}", "--config.mesh.data=2",
        ]  # fmt: skip

    together = start_processes(arguments)
    together.check()
    assert "from an earlier start" in together.err(0)
    assert contents(folder) == want
