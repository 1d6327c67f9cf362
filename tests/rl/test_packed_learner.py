"""Packed rows: loss, gradients, weights and metrics are those of a row for each trajectory."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from learner_runs import LENGTH, LearnerRun, learner_config
from test_learner import DISPLACEMENT, DR_GRPO, GRPO, GSPO, REINFORCE
from trees import assert_learned_alike, assert_trees_close

from sr1_jax.models.lora import LoraConfig, add_adapters
from sr1_jax.rl.batch import make_batch
from sr1_jax.sharding import make_mesh

PACKED = dict(packing=True, row_lengths=(32, 48), micro_batch=4)
ONE, ALL = (1, 1, 1), (2, 2, 2)
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def batch(stale):
    """One trajectory trains on nothing."""
    rows = [*stale[:5], dataclasses.replace(stale[5], trains=False), *stale[6:]]
    return make_batch(rows, length=LENGTH, pad_id=0)


def assert_same(plain, packed, batch):
    """A step of both from the same state, away from the reference."""
    after, metrics = plain.step(batch, plain.moved)
    after_packed, metrics_packed = packed.step(batch, packed.moved)
    assert metrics_packed.pop("padding_share") < 0.25 < metrics.pop("padding_share")
    assert metrics_packed == pytest.approx(metrics, rel=1e-5, abs=2e-6)
    assert metrics["policy/gradient_norm"] > 0.01
    assert_learned_alike(after_packed, after)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        pytest.param(ONE, {}, id="ppo"),
        pytest.param(ONE, GSPO, id="gspo"),
        pytest.param(ALL, GRPO, id="grpo-mesh"),
        pytest.param(ALL, {}, id="ppo-mesh", marks=slow),
        pytest.param((8, 1, 1), {}, id="ppo-data", marks=slow),
        pytest.param((1, 4, 2), GSPO, id="gspo-fsdp", marks=slow),
        pytest.param(ONE, GRPO, id="grpo", marks=slow),
        pytest.param(ONE, DR_GRPO, id="dr_grpo", marks=slow),
        pytest.param(ONE, REINFORCE, id="reinforce", marks=slow),
        pytest.param(ONE, DISPLACEMENT, id="displacement", marks=slow),
        pytest.param(ONE, dict(minibatch_size=8, epochs=2), id="steps", marks=slow),
    ],
)
def test_packed_rows_compute_the_same(learner_run, batch, mesh, changes):
    packed = dict(changes) | PACKED
    if mesh == (8, 1, 1):
        packed["micro_batch"] = 8
    assert_same(learner_run(**changes), learner_run(mesh, **packed), batch)


@slow
def test_with_adapters_offloading_and_rematerialisation(rl_policy, rl_critic, batch):
    def adapted(model, remat):
        config = dataclasses.replace(model.config, remat=remat)
        graph = nnx.graphdef(nnx.eval_shape(lambda: type(model)(config, rngs=nnx.Rngs(0))))
        model = nnx.merge(graph, nnx.state(model))
        return add_adapters(model, LoraConfig(rank=3, alpha=6.0), seed=7)

    mesh = make_mesh(*ONE, devices=jax.devices()[:1])
    runs = [
        LearnerRun(adapted(rl_policy, remat), adapted(rl_critic, remat), config, mesh)
        for remat, config in (
            ("none", learner_config()),
            ("full", learner_config(**PACKED, offload=("reference", "optimizer"))),
        )
    ]
    assert_same(*runs, batch)


def test_where_no_token_trains_nothing_moves(learner_run, stale):
    run = learner_run(**PACKED)
    nothing = make_batch(
        [dataclasses.replace(t, trains=False) for t in stale], length=LENGTH, pad_id=0
    )
    after, metrics = run.step(nothing)
    assert metrics["padding_share"] == 1 and metrics["policy/loss"] == 0
    assert np.isfinite(list(metrics.values())).all()
    assert_trees_close(after.policy.params, run.start.policy.params, rtol=0)
