"""One of the processes that take up a checkpoint of others, and save it for the next.

Called as `python restore_worker.py FOLDER STAGE HOST:PORT PROCESS`. FOLDER/job.pkl holds models,
settings, a batch and the stages; the state as restored, and after the next update of the batch,
goes to FOLDER/STAGE-PROCESS.pkl.
"""

import pickle
import sys
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from learner_worker import model_of

from sr1_jax import cluster
from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import default_config
from sr1_jax.sharding import make_mesh
from sr1_jax.training.checkpoints import RunCheckpoints


def whole(state):
    return multihost_utils.process_allgather(jax.tree.leaves(state), tiled=True)


def main(folder, stage, coordinator, process):
    job = pickle.loads((folder / "job.pkl").read_bytes())
    processes, mesh = job["stages"][stage]
    if processes > 1:
        cluster.join(coordinator, processes, process)
    config = default_config()
    config.update(job["config"])
    learner = Learner(
        model_of(Decoder, job["model"], job["policy"]),
        model_of(ValueModel, job["model"], job["critic"]),
        config,
        make_mesh(*mesh),
        trajectories=len(job["batch"].reward_B),
        steps=100,
    )
    if stage:
        with RunCheckpoints(folder / str(stage - 1), keep=1) as earlier:
            state = earlier.restore(1, learner.abstract_state)
    else:
        state, *_ = learner.step(learner.initial_state(), job["batch"], seed=0, step=1)
    restored = whole(state)
    with RunCheckpoints(folder / str(stage), keep=1) as checkpoints:
        checkpoints.save(1, state, {})
    state, *_ = learner.step(state, job["batch"], seed=0, step=2)
    (folder / f"{stage}-{process}.pkl").write_bytes(pickle.dumps((restored, whole(state))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
