"""Trajectories whose advantages are all 0 are left out of updates: the step is the same."""

import dataclasses

import jax
import numpy as np
import pytest
from learner_runs import batch_of, with_reward
from trees import adam, assert_trees_close

from sr1_jax.rl.program_keys import Kept

GRPO = dict(algorithm="grpo", kl_in="none", entropy_coefficient=0.0, micro_batch=2)
SKIP = dict(skip_zero_advantages=True)
# Of four samples a question.
REWARDS = [0.0, 0.5, 0.5, 0.75] + [1.0] * 4 + [0.0] * 4 + [0.25, 0.0, 0.0, 0.0]
FLAT = slice(4, 12)
MEANS = ("entropy", "approx_kl", "old_logp_gap", "clip_fraction", "ratio_max", "ratio_min")


@pytest.fixture(scope="module")
def rewarded(stale):
    return [with_reward(t, reward) for t, reward in zip(stale, REWARDS)]


def rows_of(monkeypatch, run):
    """Rows of the batch that each later micro-batch of the policy reads."""
    update, seen = run.learner._update_policy, []

    def spy(state, batch, plan, *rest, **more):
        seen.extend(micro_batch.rows for micro_batch in plan)
        return update(state, batch, plan, *rest, **more)

    spy.zeros = update.zeros
    monkeypatch.setattr(run.learner, "_update_policy", spy)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="buckets"),
        pytest.param(dict(packing=True, row_lengths=(32, 48)), id="packed"),
        pytest.param(dict(loss_aggregation="sequence", minibatch_size=8), id="minibatches"),
        pytest.param(dict(algorithm="rloo", old_logp="trainer", epochs=2), id="epochs"),
    ],
)
def test_a_step_without_them_is_the_same(learner_run, rewarded, monkeypatch, changes):
    whole, less = learner_run(**GRPO | changes), learner_run(**GRPO | changes | SKIP)
    seen = rows_of(monkeypatch, less)
    batch = batch_of(rewarded)
    after, metrics = whole.step(batch, whole.moved)
    after_less, metrics_less = less.step(batch, less.moved)
    for got, want in (
        (after_less.policy.params, after.policy.params),
        (adam(after_less.policy.opt_state).mu, adam(after.policy.opt_state).mu),
    ):
        assert_trees_close(got, want, atol=1e-6)
    for key in ("loss", "surrogate", "gradient_norm"):
        assert metrics_less[f"policy/{key}"] == pytest.approx(metrics[f"policy/{key}"], rel=1e-4)
    assert metrics["policy/gradient_norm"] > 0.01
    # Half of the trajectories, each once a pass.
    passed = [np.unique(row.id_BT) if hasattr(row, "id_BT") else row for row in seen]
    rows = np.concatenate(passed)
    rows = rows[rows < len(rewarded)]
    flat = np.isin(rows, range(len(rewarded))[FLAT]).sum()
    assert (len(rows) - flat) == 8 * less.config.epochs
    # A mini-batch's last micro-batch may be filled up with them.
    assert flat <= 2 * less.config.epochs


def test_metrics_of_the_loss_are_those_of_the_others(learner_run, rewarded):
    """As if the flat trajectories were not in the batch; the loss is a mean over all the same."""
    run = learner_run(**GRPO, **SKIP)
    metrics = run.step(batch_of(rewarded), run.moved)[1]
    left_out = [
        dataclasses.replace(t, trains=t.trains and row not in range(16)[FLAT])
        for row, t in enumerate(rewarded)
    ]
    whole = learner_run(**GRPO)
    want = whole.step(batch_of(left_out), whole.moved)[1]
    for name in MEANS:
        assert metrics[f"policy/{name}"] == pytest.approx(want[f"policy/{name}"], rel=1e-5), name
    tokens = [sum(t.mask.sum() for t in rows if t.trains) for rows in (rewarded, left_out)]
    assert metrics["policy/loss"] * tokens[0] == pytest.approx(want["policy/loss"] * tokens[1])
    assert metrics["trained_tokens"] == tokens[0]


def test_where_none_has_one_nothing_moves(learner_run, stale):
    run = learner_run(**GRPO, **SKIP)
    after, metrics = run.step(batch_of([with_reward(t, 0.5) for t in stale]), run.moved)
    assert metrics["policy/gradient_norm"] == 0 and metrics["policy/skipped"] == 0
    assert np.isnan(metrics["policy/entropy"]) and np.isnan(metrics["rollout_gap"])
    jax.tree.map(np.testing.assert_array_equal, after.policy.params, run.moved.policy.params)


def test_a_minibatch_of_which_all_are_left_out_has_no_part_in_the_means(learner_run, rewarded):
    """One group of four alone has advantages: in passes of two mini-batches, often only one."""
    rewards = [0.0, 0.5, 0.5, 0.75] + [1.0] * 12
    batch = batch_of([with_reward(t, reward) for t, reward in zip(rewarded, rewards)])
    run = learner_run(**GRPO | dict(minibatch_size=4), **SKIP)
    whole = learner_run(**GRPO | dict(minibatch_size=4))
    seen = set()
    for seed in range(4):
        metrics, all_metrics = (each.step(batch, each.moved, seed=seed)[1] for each in (run, whole))
        assert metrics["policy/entropy"] > 2 and metrics["rollout_gap"] > 0.1
        assert metrics["policy/loss"] == pytest.approx(all_metrics["policy/loss"], abs=1e-6)
        seen.add(round(metrics["policy/entropy"], 4))
    assert len(seen) > 1


def test_on_eight_devices(learner_run, rewarded):
    one, eight = (
        learner_run(mesh, **GRPO | dict(micro_batch=4) | SKIP) for mesh in ((1, 1, 1), (2, 2, 2))
    )
    (after, metrics), (after_8, metrics_8) = (
        run.step(batch_of(rewarded), run.moved) for run in (one, eight)
    )
    assert_trees_close(after_8.policy.params, after.policy.params, atol=1e-5)
    assert metrics_8 == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_its_program_is_listed_as_it_is_called(learner_run, rewarded, monkeypatch):
    run = learner_run(**GRPO, **SKIP)
    (program,) = [program for program in run.learner.programs() if program.key == Kept()]
    jitted, called = run.learner._kept, []
    monkeypatch.setattr(
        run.learner, "_kept", lambda *arguments: called.append(arguments) or jitted(*arguments)
    )
    run.step(batch_of(rewarded))
    described = [(x.shape, x.dtype, x.sharding) for x in program.arguments]
    # A batch is as long as its bucket, of which there is one here.
    assert [[(x.shape, x.dtype, x.sharding) for x in given] for given in called] == [described]
    assert Kept() not in {p.key for p in learner_run(**GRPO).learner.programs()}
