"""A tiny run that is trained once, and what is needed to start others."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
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
