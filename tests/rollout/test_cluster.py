"""Two processes with a retriever each roll out in lockstep, and give what one process gives."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.sharding import make_mesh

WORKER = Path(__file__).parent / "cluster_worker.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_cluster(tmp_path, tiny_decoder, small_tokenizer):
    def run(**settings):
        leaves = [np.asarray(x) for x in jax.tree.leaves(nnx.state(tiny_decoder))]
        (tmp_path / "policy.pkl").write_bytes(pickle.dumps((tiny_decoder.config, leaves)))
        small_tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "settings.json").write_text(json.dumps(settings | {"processes": 2}))
        port = str(free_port())
        devices = f"--xla_force_host_platform_device_count={settings['devices']}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
        workers = [
            subprocess.Popen([sys.executable, WORKER, tmp_path, port, str(i)], env=environment)
            for i in range(2)
        ]
        try:
            assert [worker.wait(240) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.kill()
        rows = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
        assert all(rows)
        return {tuple(row["key"]): row for part in rows for row in part}

    return run


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_two_processes_give_what_one_gives(
    run_cluster, make_config, make_engine, questions, fake_retriever, tensor
):
    config = make_config(slots=8, passages=1)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    # Eleven questions: one process has one more, and goes on alone at the end.
    asked = questions[:11]
    got = run_cluster(devices=2, tensor=tensor, rollout=plain, questions=asked, samples=2)
    retriever = fake_retriever(lambda q, rank: Passage(f"{q}-1", "T1", f"on {q[:12]}", 1.0))
    want = make_engine(retriever, slots=8, passages=1).run(asked, seed=1, samples=2)
    assert got.keys() == {(t.question_id, t.sample) for t in want}
    for t in want:
        row = got[t.question_id, t.sample]
        assert row["ids"] == t.ids.tolist() and row["mask"] == t.mask.tolist()
        assert (row["searches"], row["status"]) == (t.searches, t.status)


def test_layout_of_slots():
    layout = SlotLayout(make_mesh(2, 2, 2), 12)
    assert (layout.parts, layout.per_part, layout.slots) == (4, 3, 12)
    assert layout.part_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    x_S = np.arange(24).reshape(12, 2)
    placed = layout.place((x_S,))[0]
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(layout.read((placed,))[0], x_S)
    assert layout.most([3, 1]).tolist() == layout.total([3, 1]).tolist() == [3, 1]


def test_slots_that_do_not_divide():
    message = r"rollout.slots=12 does not divide over the 8 devices of mesh axes data and fsdp"
    with pytest.raises(ValueError, match=message):
        SlotLayout(make_mesh(4, 2, 1), 12)
