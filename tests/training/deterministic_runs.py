"""Deterministic runs as processes of their own, and what makes two of them the same run."""

import os
import subprocess
import sys
import time

import jax
import numpy as np
from saved_runs import saved_state, steady

from sr1_jax.evaluation.metrics import read_metrics

# Of the process rather than of the run: what a new one finds in no cache, and was not asked twice.
OF_THE_PROCESS = ("search_cache", "_seconds")


def alone(command, log):
    """One process with one device."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    with open(log, "a") as out:
        return subprocess.Popen(
            [sys.executable, *command], env=os.environ | {"XLA_FLAGS": flags}, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def wait_for(event, running, seconds):
    """Whether it comes to pass while all processes run, within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and all(process.poll() is None for process in running):
        if event():
            return True
        time.sleep(0.002)
    return False


def rows_of(workdir):
    def kept(row):
        items = steady(row).items()
        return {key: value for key, value in items if not any(x in key for x in OF_THE_PROCESS)}

    return [kept(row) for row in read_metrics(workdir)]


def assert_equal_runs(workdir, other, steps):
    """Bit for bit: parameters, moments, metrics, trajectories."""
    rows, wanted = rows_of(workdir), rows_of(other)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert rows == wanted
    for step in range(1, steps + 1):
        name = f"trajectories/step-{step:06d}.jsonl"
        assert (workdir / name).read_bytes() == (other / name).read_bytes()
    got, want = saved_state(workdir, steps), saved_state(other, steps)
    assert fingerprints(got) == fingerprints(want) and len(fingerprints(want)) > 20


def fingerprints(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
