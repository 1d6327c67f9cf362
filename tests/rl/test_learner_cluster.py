"""The learner on two real processes computes what it computes on one."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from sr1_jax.rl.batch import make_batch

WORKER = Path(__file__).parent / "learner_worker.py"
LENGTH = 24
ROWS = [3, 0, 14]


@pytest.fixture
def run_together(start_processes, tmp_path, rl_policy, rl_critic, learner_run, stale):
    """Function of (mesh shape, devices a process, settings, settings on one device, batches) ->
    asserts that so many batches train on the mesh what they train on one device."""

    def run(mesh, devices, settings, alone_settings, count):
        alone = learner_run(**alone_settings)
        orders = (stale, stale[::-1])[:count]
        batches = [make_batch(rows, length=LENGTH, pad_id=0) for rows in orders]
        state, want = None, []
        for step, batch in enumerate(batches, start=1):
            state, metrics, prepared = alone.result(batch, state, seed=0, step=step)
            want.append(metrics)
        want_rows = alone.learner.rows_of(prepared, ROWS)
        config = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in (alone.config.to_dict() | settings).items()
        }
        job = {
            "processes": 2,
            "mesh": mesh,
            "model": rl_policy.config,
            "policy": [np.asarray(x) for x in jax.tree.leaves(nnx.state(rl_policy))],
            "critic": [np.asarray(x) for x in jax.tree.leaves(nnx.state(rl_critic))],
            "config": config,
            "batches": batches,
            "rows": ROWS,
        }
        (tmp_path / "job.pkl").write_bytes(pickle.dumps(job))
        start_processes(
            lambda process, coordinator: (WORKER, tmp_path, coordinator, process), devices=devices
        ).check()
        found = [pickle.loads((tmp_path / f"{i}.pkl").read_bytes()) for i in range(2)]
        assert found[0][1] == found[1][1]  # bit by bit
        for leaves, metrics, rows in found:
            assert rows.keys() == want_rows.keys()
            for name, wanted in want_rows.items():
                np.testing.assert_allclose(rows[name], wanted, atol=1e-4)
            for got, wanted in zip(metrics, want, strict=True):
                for name in ("padding_share", "shared_share"):
                    got.pop(name, None), wanted.pop(name, None)
                assert got == pytest.approx(wanted, rel=1e-5, abs=2e-6)
            for a, b in zip(leaves, jax.tree.leaves(state), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
        start = jax.tree.leaves(alone.start.policy.params)
        moved = [np.abs(np.asarray(a) - b).max() for a, b in zip(start, found[0][0])]
        assert max(moved) > 5e-5

    return run


def test_two_processes_with_a_device_each(run_together):
    """Two micro-batches of lengths of their own; on one device, one."""
    cut = dict(micro_batch=8, length_buckets=(17, LENGTH))
    run_together((2, 1, 1), 1, cut, dict(micro_batch=16), count=1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["buckets", "packed", "shared"])
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=str)
def test_two_processes_with_four_devices_each(run_together, mesh, layout):
    """Two batches of two optimizer steps each; on one device in twice as many micro-batches,
    packed only where prefixes are shared."""
    steps = dict(minibatch_size=8, length_buckets=(11, 17, LENGTH))
    if layout == "shared":  # on one device too, where mini-batches are then of whole questions
        steps |= dict(packing=True, share_prefixes=True)
    together = dict(micro_batch=8, packing=layout != "buckets")
    run_together(mesh, 4, steps | together, steps | dict(micro_batch=4), count=2)
