"""One of several processes that roll out together.

Called as `python cluster_worker.py FOLDER HOST:PORT INDEX`. FOLDER
holds policy.pkl, tokenizer.json and settings.json; trajectories, the engine's stats and how many
collectives the host waited for during the episodes go to INDEX.json.
"""

import json
import pickle
import sys
import time
from pathlib import Path

import jax
import tokenizers
from flax import nnx
from jax.experimental import multihost_utils

from sr1_jax import cluster
from sr1_jax.environment import Environment
from sr1_jax.models import Decoder, Tokenizer
from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout import SplitEngine, default_config
from sr1_jax.rollout.episode_loop import EpisodeLoop
from sr1_jax.sharding import make_mesh


class SlowRetriever:
    """Takes `seconds` a call."""

    def __init__(self, seconds):
        self._seconds = seconds

    def search(self, queries, k):
        time.sleep(self._seconds)
        return [[Passage(f"{q}-1", "T1", f"on {q[:12]}", 1.0)] for q in queries]


def retriever_of(settings, index):
    """A slow one, or the dense index that the settings name, which both processes share."""
    if "dense" not in settings:
        return SlowRetriever(0.01 * index)
    from sr1_jax.models.encoder_folder import load_encoder
    from sr1_jax.retrieval.dense import DenseRetriever

    return DenseRetriever.load(settings["dense"], load_encoder(settings["encoder"]))


def count_collectives():
    """Counts calls that wait for a collective of the devices; returns what is counted, by when."""
    counted = {"ever": 0, "while playing": 0}

    def watched(function):
        def call(*args, **kwargs):
            counted["ever"] += 1
            return function(*args, **kwargs)

        return call

    for name in ("process_allgather", "broadcast_one_to_all", "sync_global_devices"):
        setattr(multihost_utils, name, watched(getattr(multihost_utils, name)))
    play = EpisodeLoop.play

    def watched_play(self):
        before = counted["ever"]
        play(self)
        counted["while playing"] += counted["ever"] - before

    EpisodeLoop.play = watched_play
    return counted


def main(folder, coordinator, index):
    counted = count_collectives()
    settings = json.loads((folder / "settings.json").read_text())
    cluster.join(coordinator, settings["processes"], index)
    with open(folder / "policy.pkl", "rb") as file:
        model_config, leaves = pickle.load(file)
    model = nnx.eval_shape(lambda: Decoder(model_config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(model)
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = default_config()
    config.update(settings["rollout"])
    config.extend_buckets = tuple(config.extend_buckets)
    engine = SplitEngine(
        nnx.merge(graph, params),
        Tokenizer(backend, eos_ids=[0], pad_id=1),
        None,
        config,
        # Slower in one process than in the other.
        environment=Environment.of_search(
            retriever_of(settings, index),
            config,
            template="compact_search",
            reader=settings.get("reader", ""),
        ),
        mesh=make_mesh(-1, 1, settings["tensor"]),
    )
    run = engine.run(settings["questions"], seed=1, samples=settings["samples"])
    rows = [
        {"key": [t.question_id, t.sample], "ids": t.ids.tolist(), "mask": t.mask.tolist(),
         "searches": t.searches, "status": t.status}
        for t in run
    ]  # fmt: skip
    (folder / f"{index}.json").write_text(json.dumps([rows, engine.stats, counted]))


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
