"""The demo's draws stay what they are: files, traces and their order, pinned by hash.

Whoever changes them on purpose changes every figure of docs/experiments/demo.md.
"""

import hashlib

import pytest

from sr1_jax.training.settings import default_config
from sr1_jax.world.task import world_task
from sr1_jax.world.traces import TraceMix

WANT = {
    "corpus.jsonl": "9fb1ef1a44f961439a944a2f69717c8aded19b1b24841dcd4691c8761f92acc3",
    "changed_corpus.jsonl": "0f3b4eb6f648932f9e9427b782a3db85ef5c1f83a1e07a3374ef97a7cf244f23",
    "train.jsonl": "7ff465315ac71d0fc3c5db07f96619b48e71bd51d924f2d1ade2ea82b373da6e",
    "heldout.jsonl": "fab618a0cedd8c436f25cd0ddc4b9d1b8369a113b1f728f019d9ccbde88db38f",
    "changed_heldout.jsonl": "0037e2e9591bef7d0a9e09a60c7bd274c410444603653b550734cce01fcc4b71",
    "traces": "d7d90ea6798931dea6e2616f9b92584e297112f80f843b57566d2c6c4676b642",
    "traces of other worlds": "f529cbd8376781b344dc2167eb80391a02419fe8f8bafa6b80af560c077a8f6a",
}


def traces_hash(supervised) -> str:
    mix = TraceMix(lazy=0.2, two_hop=0.5, explore=0.8)
    digest = hashlib.sha256()
    for trace in supervised._traces(mix, 300, 5):
        shown = (trace.question.id, trace.mode, trace.segments, sorted(trace.arbitrary))
        digest.update(repr(shown).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = default_config()
    config.data.world_people = 64
    config.rollout.passages = 2
    task = world_task(config, workdir)
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (workdir / "data").glob("*.jsonl")
    }
    hashes["traces"] = traces_hash(task.supervised)
    config.warm_start.worlds = 2
    hashes["traces of other worlds"] = traces_hash(world_task(config, workdir).supervised)
    return hashes


@pytest.mark.parametrize("name", WANT)
def test_the_draws_of_the_demo(found, name):
    assert found[name] == WANT[name]
