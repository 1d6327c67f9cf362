"""One of several processes that train together.

Called as `python learner_worker.py FOLDER HOST:PORT PROCESS`. FOLDER/job.pkl
holds models, settings and batches; what comes out goes to FOLDER/PROCESS.pkl.
"""

import pickle
import sys
from pathlib import Path

import jax
from flax import nnx
from jax.experimental import multihost_utils

from sr1_jax import cluster
from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import default_config
from sr1_jax.sharding import make_mesh


def model_of(kind, config, leaves):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(shapes), leaves))


def main(folder, coordinator, process):
    job = pickle.loads((folder / "job.pkl").read_bytes())
    cluster.join(coordinator, job["processes"], process)
    config = default_config()
    config.update(job["config"])
    learner = Learner(
        model_of(Decoder, job["model"], job["policy"]),
        model_of(ValueModel, job["model"], job["critic"]),
        config,
        make_mesh(*job["mesh"]),
        trajectories=len(job["batches"][0].reward_B),
        steps=100,
    )
    state, metrics = learner.initial_state(), []
    for step, batch in enumerate(job["batches"], start=1):
        state, logged, prepared = learner.step(state, batch, seed=0, step=step)
        metrics.append(logged)
    rows = learner.rows_of(prepared, job["rows"])
    leaves = multihost_utils.process_allgather(jax.tree.leaves(state), tiled=True)
    (folder / f"{process}.pkl").write_bytes(pickle.dumps((leaves, metrics, rows)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
