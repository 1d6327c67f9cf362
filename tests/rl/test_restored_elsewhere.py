"""A checkpoint of one mesh and number of processes, taken up on others."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from learner_runs import batch_of, learner_config

WORKER = Path(__file__).parent / "restore_worker.py"
# (processes, devices of each, mesh), each from the checkpoint of the one before.
STAGES = [(1, 8, (2, 2, 2)), (1, 1, (1, 1, 1)), (4, 1, (1, 2, 2)), (2, 2, (2, 2, 1))]


@pytest.mark.slow
def test_from_eight_devices_to_one_to_four_processes_to_two(
    start_processes, tmp_path, rl_policy, rl_critic, stale
):
    """Parameters, moments and counters are the same bit for bit wherever they are restored, and so
    is, within rounding, the next update of the same batch."""
    job = {
        "stages": [(processes, mesh) for processes, _, mesh in STAGES],
        "model": rl_policy.config,
        "policy": [np.asarray(x) for x in jax.tree.leaves(nnx.state(rl_policy))],
        "critic": [np.asarray(x) for x in jax.tree.leaves(nnx.state(rl_critic))],
        "config": {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in learner_config().to_dict().items()
        },
        "batch": batch_of(stale),
    }
    (tmp_path / "job.pkl").write_bytes(pickle.dumps(job))
    found = []
    for stage, (count, devices, _) in enumerate(STAGES):
        start_processes(
            lambda process, coordinator, stage=stage: (
                WORKER, tmp_path, stage, coordinator, process,
            ),
            count=count,
            devices=devices,
        ).check()  # fmt: skip
        of_all = [pickle.loads((tmp_path / f"{stage}-{i}.pkl").read_bytes()) for i in range(count)]
        for restored, after in of_all[1:]:
            for mine, first in zip([*restored, *after], [*of_all[0][0], *of_all[0][1]]):
                np.testing.assert_array_equal(mine, first)
        found.append(of_all[0])
    saved, want = found[0]
    moved = [np.abs(a - b).max() for a, b in zip(want, saved)]
    assert max(moved) > 5e-5
    for restored, after in found[1:]:
        for a, b in zip(restored, saved, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(after, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
