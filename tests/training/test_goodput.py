"""The account of a run's time, by a clock of its own."""

import jax
import jax.numpy as jnp
import pytest

from sr1_jax.training import goodput as module
from sr1_jax.training.goodput import Goodput
from sr1_jax.training.stopwatch import Stopwatch

COMPILE = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: add seconds to its only entry."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_shares_by_hand(clock):
    with Goodput() as goodput:
        with goodput("restore"):
            clock[0] += 5
        watch = Stopwatch(goodput)
        with watch("step"):
            with watch("rollout"):
                clock[0] += 30
            clock[0] += 10
            jax.monitoring.record_event_duration_secs(COMPILE, 8.0)
        with watch("evaluation"):
            clock[0] += 20
            jax.monitoring.record_event_duration_secs(COMPILE, 2.0)
        with goodput("checkpoint"):
            clock[0] += 5
        clock[0] += 30
        found = goodput.metrics({"rollout/tool_wait_seconds": 4.0})
    want = {
        "restore": 0.05, "compile": 0.10, "evaluation": 0.18, "checkpoint": 0.05,
        "tool_wait": 0.04, "useful": 0.28, "other": 0.30,
    }  # fmt: skip
    assert found == pytest.approx({f"goodput/{part}": share for part, share in want.items()})
    assert watch.metrics()["seconds/step"] == 40.0


def test_jax_reports_what_it_compiles():
    with Goodput() as goodput:
        with goodput("step"):
            jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((7, 3)))
        found = goodput.metrics({})
    assert found["goodput/compile"] > 0
    assert sum(found.values()) == pytest.approx(1.0)


def test_it_listens_no_more_afterwards(clock):
    with Goodput() as goodput:
        clock[0] += 1
    jax.monitoring.record_event_duration_secs(COMPILE, 0.5)
    assert goodput.metrics({})["goodput/compile"] == 0
