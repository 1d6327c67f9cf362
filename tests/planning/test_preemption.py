"""What a preemption costs: the formula against a simulated run, intervals against a search."""

import math
import types

import jax
import numpy as np
import pytest
from tiny_runs import tiny_config

from sr1_jax.planning.preemption import (
    Cloud,
    Preemption,
    held_at_resumption,
    host_bytes,
    preemption,
)
from sr1_jax.planning.run import device_bytes, make_run


def cost(**changes):
    """A run with 20 s to write, of whose notices (30 s - 20 s) / 25 s are met."""
    values = dict(bytes=80e9, most_written=20e9, most_read=20e9, base=4e9, step=25.0)
    cloud = Cloud(hours=4, notice=30, storage=1e9, copy=10e9, start=120)
    return Preemption(**{"cloud": cloud} | values | changes)


def test_numbers_by_hand():
    found = cost()
    assert (found.write, found.pause, found.comeback) == (20, 2, 120 + 24)
    assert found.saved_in_time == pytest.approx(10 / 25)
    # (.6 (600 / 2 + 20) + 144) / 14,400 + 2 / 600
    assert found.loss(600) == pytest.approx((0.6 * 320 + 144) / 14_400 + 2 / 600)


def simulated_loss(found, interval, rng, preemptions=40_000):
    """The share of the time in which nothing lasting is done, event by event: runs train, pause to
    save, are told to end at a random moment, and save if the rest of the step leaves time."""
    between = 3600 * found.cloud.hours
    lost = 0.0
    # A preemption falls anywhere between two checkpoints, and anywhere within a step.
    since = rng.uniform(0, interval, preemptions)
    rest = rng.uniform(0, found.step, preemptions)
    for moment, left in zip(since, rest):
        if left + found.write > found.cloud.notice:
            # A checkpoint begun less than `write` ago is not there yet: the one before it counts.
            lost += moment + (interval if moment < found.write else 0.0)
        lost += found.comeback
    return lost / preemptions / between + found.pause / interval


@pytest.mark.parametrize("interval", [120.0, 600.0, 1800.0])
@pytest.mark.parametrize("step", [15.0, 25.0, 300.0])
def test_the_loss_is_that_of_a_simulated_run(interval, step):
    found = cost(step=step)
    want = simulated_loss(found, interval, np.random.default_rng(0))
    assert found.loss(interval) == pytest.approx(want, rel=0.02)


def test_the_best_interval_is_the_least_loss():
    found = cost()
    grid = np.arange(10, 7200, 1.0)
    best = grid[np.argmin([found.loss(interval) for interval in grid])]
    assert found.best_interval() == pytest.approx(best, abs=1)


@pytest.mark.parametrize("most", [0.025, 0.03, 0.05])
def test_the_longest_interval_just_reaches_it(most):
    found = cost()
    longest = found.longest_interval(most)
    assert found.loss(longest) == pytest.approx(most)
    assert found.loss(longest + 1) > most > found.loss(longest - 1)


def test_what_is_out_of_reach():
    # Coming back alone loses 144 of 14,400 seconds.
    assert cost().longest_interval(0.01) is None
    # Its pauses and what is done again are more than is left.
    assert cost().longest_interval(cost().loss(cost().best_interval()) - 1e-4) is None


def test_every_notice_is_met():
    found = cost(most_written=1e9, step=20.0)
    assert found.saved_in_time == 1
    assert found.best_interval() == found.longest_interval(0.03) == math.inf
    assert found.loss(math.inf) == pytest.approx(found.comeback / 14_400)


def test_none_is_met_where_writing_takes_longer():
    assert cost(most_written=31e9).saved_in_time == 0


@pytest.mark.parametrize("name", Cloud._fields)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_assumptions_are_checked(name, value):
    with pytest.raises(ValueError, match=f"--preemption_{name} must be above 0"):
        Cloud(**{name: value}).check()


# What is written and read


class Device(types.SimpleNamespace):
    __hash__ = object.__hash__


def split(*parts):
    """A sharding of rows: (rows, process) of each device."""
    rows = parts[0][0]
    return types.SimpleNamespace(
        shard_shape=lambda shape: (rows.stop - rows.start, *shape[1:]),
        devices_indices_map=lambda shape: {
            Device(process_index=host): (rows, slice(None)) for rows, host in parts
        },
    )


def leaf(sharding, rows=8, columns=4):
    return types.SimpleNamespace(
        shape=(rows, columns), dtype=np.dtype("float32"), sharding=sharding
    )


def test_parts_of_hosts():
    """Two hosts of two devices, each with a quarter."""
    quarters = [slice(2 * i, 2 * i + 2) for i in range(4)]
    written, read = host_bytes([leaf(split(*zip(quarters, (0, 0, 1, 1))))])
    assert written == read == {0: 64, 1: 64}


def test_what_all_have_is_written_once_and_read_by_each_host():
    whole = slice(None)
    written, read = host_bytes([leaf(split((slice(0, 8), 0), (slice(0, 8), 0), (whole, 1)))])
    assert written == {0: 128}
    assert read == {0: 128, 1: 128}


def test_a_run_of_shapes():
    """Parameters and two moments of policy and critic, in float32, split over all devices."""
    run = make_run(tiny_config(data=1, fsdp=4, tensor=2), jax.devices()[:8])
    found = preemption(run, step=10.0, cloud=Cloud())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.resident["policy"]))
    critic = sum(leaf.size for leaf in jax.tree.leaves(run.resident["critic"]))
    counters = found.bytes - 12 * (parameters + critic)
    assert 0 <= counters <= 64
    assert found.most_written == found.most_read == found.bytes
    reference = sum(leaf.size for leaf in jax.tree.leaves(run.resident["reference"]))
    assert found.base == 4 * reference
    # Taking it up again holds what an update starts with.
    names = ("policy", "critic", "policy optimizer", "critic optimizer", "reference")
    assert held_at_resumption(run) == sum(device_bytes(run.resident[name]) for name in names)
