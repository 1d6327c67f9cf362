"""A step of the learner on meshes: the same results, and work, memory and traffic shared."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learner_runs import LENGTH, batch_of
from trees import adam, assert_trees_close, first_gradient

from sr1_jax.models.packed import PackedSequences
from sr1_jax.rl.program_keys import Score
from sr1_jax.rl.update import put_rows, take_rows
from sr1_jax.sharding import make_mesh, named, place


def test_the_state_is_donated_and_nothing_else(learner_run, rl_policy, rl_critic, batch):
    run = learner_run()
    state = jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), run.start)
    after = run.learner.step(state, batch, seed=0, step=1).state
    gone = jax.tree.leaves((state.policy.params, state.critic.params))
    assert all(x.is_deleted() for x in gone)
    kept = jax.tree.leaves((run.learner.reference, after))
    kept += jax.tree.leaves((jax.tree.leaves(rl_policy), jax.tree.leaves(rl_critic)))
    assert not any(x.is_deleted() for x in kept if isinstance(x, jax.Array))
    assert_trees_close(run.learner.reference, run.start.policy.params, rtol=0)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=str)
def test_all_meshes_compute_the_same(learner_run, stale, shape):
    """Loss, gradients and updated weights; rows in two micro-batches and padded to two lengths
    on the mesh, in one of each on one device."""
    one = learner_run(micro_batch=16)
    many = learner_run(shape, length_buckets=(17, LENGTH))
    batch = batch_of(stale)
    after, metrics = one.step(batch, one.moved)
    after_many, metrics_many = many.step(batch, many.moved)
    assert metrics_many.pop("padding_share") < metrics.pop("padding_share")
    assert metrics_many == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name in ("policy", "critic"):
        got, want = getattr(after_many, name), getattr(after, name)
        assert_trees_close(first_gradient(got), first_gradient(want), atol=1e-6)
        assert_trees_close(got.params, want.params, atol=1e-5)
    # Parameters and moments are where they were, split as the mesh says.
    assert jax.tree.map(lambda x: x.sharding, after_many) == jax.tree.map(
        lambda x: x.sharding, many.start
    )
    kernel = after_many.policy.params["trunk"]["layers"]["attention"]["q"]["kernel"][...]
    _, fsdp, tensor = shape
    assert kernel.addressable_shards[0].data.shape == (2, 16 // fsdp, 4 // tensor, 4)


def test_what_waits_on_the_hosts_changes_nothing(learner_run, stale):
    here, there = learner_run(), learner_run(offload=("reference", "optimizer"))
    (after, metrics), (after_there, metrics_there) = (
        run.step(batch_of(stale), run.moved) for run in (here, there)
    )
    assert metrics_there == pytest.approx(metrics, rel=1e-6, abs=1e-7)
    assert_trees_close(after_there, after, atol=1e-7)
    waiting = jax.tree.leaves((there.learner.reference, adam(after_there.policy.opt_state).nu))
    assert {x.sharding.memory_kind for x in waiting} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(after_there.policy.params)} == {
        "device"
    }


def test_data_parallel_devices_share_the_work(learner_run):
    """Each of eight devices computes an eighth, not every micro-batch."""

    def flops(shape):
        learner = learner_run(shape).learner
        score = next(p for p in learner.programs() if p.key == Score(LENGTH, LENGTH))
        return score.lower().compile().cost_analysis()["flops"]

    assert flops((8, 1, 1)) < flops((1, 1, 1)) / 6


@pytest.mark.parametrize("packed", [False, True])
def test_taking_rows_moves_no_more_than_them(packed):
    """Rows that lie on other devices, or hosts, cost a micro-batch of traffic, not a batch; and
    where they are put back, no more."""
    mesh = make_mesh(8, 1, 1)
    batch, rows = np.random.default_rng(0).normal(size=(64, 128)), np.arange(60, 28, -2)
    batch, at = batch.astype(np.float32), (rows[:, None], np.arange(96)[None])
    if packed:
        # Half of a row is one trajectory's, then another's; the last tokens are padding.
        half_RT = np.arange(96)[None] // 48
        at = (rows[:, None] - half_RT, np.arange(96)[None] - 48 * half_RT)
        id_RT = np.where(np.arange(96)[None] < 90, at[0], len(batch))
        rows = PackedSequences(*(x.astype(np.int32) for x in np.broadcast_arrays(id_RT, at[1])))

    @jax.jit
    def take(x_BT, rows):
        taken_RT = take_rows(x_BT, rows, 96, mesh)[0]
        back_BT = put_rows(jnp.zeros_like(x_BT), rows, taken_RT)
        return taken_RT, jax.lax.with_sharding_constraint(back_BT, named(mesh, "batch"))

    placed = place(batch, named(mesh, "batch"))
    taken_RT, back_BT = take(placed, rows)
    want_RT = batch[at] if not packed else np.where(np.arange(96)[None] < 90, batch[at], 0)
    np.testing.assert_array_equal(taken_RT, want_RT)
    want_BT = np.zeros_like(batch)
    want_BT[at] = want_RT
    np.testing.assert_array_equal(back_BT, want_BT)
    program = take.lower(placed, rows).compile().as_text()
    moved = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-|collective-|reduce-scatter)", program)
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in moved]
    # Packed, the two numbers that say where a token comes from travel, too.
    assert 16 * 96 in sizes and max(sizes) <= 16 * 96 * (1 + packed)
