"""A tiny run that is trained once, and what is needed to start others."""

import functools
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bucket_fixtures import bucket, no_pauses  # noqa: F401
from saved_runs import saved_state, steady
from tiny_config import get_config

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.sharding import make_mesh
from sr1_jax.train import train


@pytest.fixture
def tiny_config():
    return get_config()


@pytest.fixture(scope="session")
def mesh():
    return make_mesh()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The tiny run, four steps without a break: its workdir, config and result."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config = get_config()
    return SimpleNamespace(workdir=workdir, config=config, result=train(config, workdir))


@pytest.fixture
def derived(finished):
    """A config that starts from the base policy and the data of the finished run."""
    config = get_config()
    config.base.workdir = str(finished.workdir)
    config.warm_start.phases = ()
    config.evaluation.every = 0
    config.evaluation.final_questions = 0
    return config


@pytest.fixture(scope="session")
def equal_trees():
    """Function that asserts that two trees are equal, bit by bit."""
    import jax

    return functools.partial(
        jax.tree.map, lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    )


@pytest.fixture(scope="session")
def same_run(equal_trees):
    """Function that asserts that two runs have the same metrics, trajectories and states."""

    def compare(one, other, *, steps):
        rows, others = ([steady(row) for row in read_metrics(run)] for run in (one, other))
        assert rows == others and len(rows[0]) > 25
        for step in steps:
            equal_trees(saved_state(one, step), saved_state(other, step))
        for path in (other / "trajectories").iterdir():
            assert (one / "trajectories" / path.name).read_bytes() == path.read_bytes()

    return compare


@pytest.fixture
def small_disk(tmp_path):
    """Function of (kind, holds) that mounts a disk of four MB, lets `holds` write to it, and makes
    it full, or read-only; the tests that ask for it need to be root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")

    def make(kind, holds):
        holds(disk)
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return disk

    yield make
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="module")
def importable():
    """Lets processes import the configs and the retriever in this folder."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """What is compiled once need not be compiled again by processes that are killed."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield
