"""Engines around the tiny policy, with settings under which every kind of turn comes up."""

import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from sr1_jax.environment import Environment
from sr1_jax.environment.settings import CALLS
from sr1_jax.rollout import Engine, default_config

SETTINGS = {
    "slots": 5,
    "max_searches": 2,
    "max_segment_tokens": 24,
    "max_observation_tokens": 40,
    "max_context_tokens": 200,
    "decode_steps": 8,
    "extend_buckets": (24,),
}
# Of the environment.
TEMPLATE = "compact_search"
OPTIONS = {"backoff_seconds": 0.0}


@pytest.fixture(scope="session")
def make_config():
    def make(**changes):
        config = default_config()
        config.update(SETTINGS | changes)
        return config

    return make


@pytest.fixture(scope="session")
def make_engine(tiny_decoder, small_tokenizer, fake_retriever, make_config):
    """`make_engine(retriever, **changes of the settings)`; by default a retriever that works.

    Changes may also be the template, the reward's settings, a reader's template, and options of the
    search tool.
    """

    def make(retriever="fake", *, template=TEMPLATE, reward=None, reader="", **changes):
        if retriever == "fake":
            retriever = fake_retriever()
        of_engine = {key: changes.pop(key) for key in ("mesh", "keeps_caches") if key in changes}
        options = OPTIONS | {key: changes.pop(key) for key in CALLS.parts if key in changes}
        config = make_config(**changes)
        environment = Environment.of_search(
            retriever, config, template=template, reward=reward, reader=reader, **options
        )
        return Engine(
            tiny_decoder, small_tokenizer, retriever, config, environment=environment, **of_engine
        )

    return make


@pytest.fixture(scope="session")
def questions():
    """A dozen of prompts from 10 to 43 tokens; the longer ones are prefilled in parts."""
    golden = ["Bob", "P", "1", "mayor", "of", "is", "é"]
    return [
        {"id": f"q{i}", "question": "Who is " + "the mayor of " * i, "golden_answers": golden}
        for i in range(12)
    ]


def as_values(trajectory):
    """A trajectory as plain values that can be compared."""
    return {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name, value in vars(trajectory).items()
        if name != "seconds"
    }


@pytest.fixture(scope="session")
def assert_same():
    """Compares trajectories, in any order, token for token."""

    def check(got, want, *, logp_atol=1e-5):
        got, want = ({(t.question_id, t.sample): as_values(t) for t in ts} for ts in (got, want))
        assert got.keys() == want.keys()
        for key in want:
            logp, wanted_logp = got[key].pop("logp"), want[key].pop("logp")
            assert got[key] == want[key]
            assert logp == pytest.approx(wanted_logp, abs=logp_atol)

    return check


WORKER = Path(__file__).parent / "cluster_worker.py"


@pytest.fixture
def run_cluster(tmp_path, start_processes, tiny_decoder, small_tokenizer):
    """Function that rolls out in two processes; returns (rows, stats, collectives) of each."""

    def run(**settings):
        leaves = [np.asarray(x) for x in jax.tree.leaves(nnx.state(tiny_decoder))]
        (tmp_path / "policy.pkl").write_bytes(pickle.dumps((tiny_decoder.config, leaves)))
        small_tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "settings.json").write_text(json.dumps(settings | {"processes": 2}))
        start_processes(
            lambda process, coordinator: (WORKER, tmp_path, coordinator, process),
            devices=settings["devices"],
        ).check()
        return [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]

    return run
