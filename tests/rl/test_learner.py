"""A step of the learner against a loop over unpadded trajectories, and what must not matter."""

import dataclasses

import jax
import numpy as np
import pytest
from learner_runs import LENGTH, batch_of, with_reward
from oracle import Oracle, first_adam_step
from trees import adam, assert_trees_close, changed, first_gradient

from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import default_config
from sr1_jax.sharding import make_mesh

GRPO = dict(algorithm="grpo", kl_in="loss", kl_kind="k3", micro_batch=2)
ROLLOUT = dict(algorithm="grpo", kl_in="none", micro_batch=4)
TRAINER = ROLLOUT | dict(old_logp="trainer")
EPOCHS = ROLLOUT | dict(epochs=2, minibatch_size=8)
# All switches of the loss, each with every other it goes with.
DR_GRPO = dict(
    algorithm="dr_grpo",
    loss_aggregation="constant",
    loss_constant=13,
    clip_high=0.3,
    dual_clip=1.25,
    kl_in="loss",
    kl_kind="k2",
    micro_batch=4,
)
GSPO = dict(
    algorithm="rloo",
    ratio="sequence",
    loss_aggregation="sequence",
    clip=0.02,
    clip_high=0.03,
    micro_batch=4,
)
REINFORCE = dict(algorithm="reinforce_pp", old_logp="trainer", importance_cap=1.1, micro_batch=4)
ALGORITHMS = {"ppo": {}, "grpo": GRPO, "dr_grpo": DR_GRPO, "gspo": GSPO, "reinforce": REINFORCE}


# A whole step


@pytest.mark.parametrize("changes", ALGORITHMS.values(), ids=ALGORITHMS)
def test_step_equals_the_loop(
    learner_run, rl_policy, rl_critic, full_logp, stale, trajectories, changes
):
    run = learner_run(**changes)
    critic = None if changes else rl_critic
    oracle = Oracle(rl_policy, critic, run.config, stale, full_logp)
    after, metrics = run.step(batch_of(stale), run.moved)

    rows = oracle.prepare(run.moved, run.start.policy.params)
    (loss, surrogate, entropy), grads = oracle.policy(
        run.moved.policy.params, rows, run.config.kl_coefficient
    )
    params, norm = first_adam_step(run.moved.policy.params, grads, 1e-4, 0.05)
    flat = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    sampled = np.concatenate([t.logp[t.mask == 1] for t in stale])
    log_ratio = np.concatenate(
        [oracle.logp(run.moved.policy.params, t) - row["old"] for t, row in zip(stale, rows)]
    )
    want = {
        "trained_tokens": sum(t.mask.sum() for t in trajectories),
        "kl": oracle.kl(flat["old"], flat["ref"]).mean(),
        "policy/loss": loss,
        "policy/surrogate": surrogate,
        "policy/entropy": entropy,
        "policy/gradient_norm": norm,
        "policy/approx_kl": -log_ratio.mean(),
        "policy/old_logp_gap": np.abs(log_ratio).mean(),
        "rollout_gap": np.abs(flat["old"] - sampled + log_ratio).mean(),
        "kl_coefficient": run.config.kl_coefficient,
    }
    if run.config.importance_cap:
        capped = np.minimum(np.exp(flat["old"] - sampled), run.config.importance_cap)
        want["importance_mean"] = capped.mean()
        want["importance_capped"] = (capped == run.config.importance_cap).mean()
        assert 0.1 < want["importance_capped"] < 0.9
    if critic is not None:
        critic_loss, critic_grads = oracle.critic(run.moved.critic.params, rows)
        critic_params, critic_norm = first_adam_step(
            run.moved.critic.params, critic_grads, 1e-4, 0.05
        )
        residual = flat["returns"] - flat["values"]
        want |= {
            "critic/loss": critic_loss,
            "critic/gradient_norm": critic_norm,
            "critic/value_mean": flat["values"].mean(),
            "critic/explained_variance": 1 - residual.var() / flat["returns"].var(),
        }
    assert {key: metrics[key] for key in want} == pytest.approx(want, rel=2e-5, abs=2e-6)
    # The test would not see a term that is not at work.
    if run.config.old_logp == "rollout":
        assert metrics["policy/clip_fraction"] > 0.1
    if run.config.dual_clip:
        assert metrics["policy/dual_clip_fraction"] > 0.05
    assert abs(want["kl"]) > 0.01
    if not changes:
        assert min(norm, critic_norm) > 0.05

    scale = min(1.0, 0.05 / norm)
    assert_trees_close(
        first_gradient(after.policy), jax.tree.map(lambda g: g * scale, grads), atol=1e-6
    )
    # Adam divides by the size of the gradient, so the rounding of a tiny one shows: 5% of a step.
    assert_trees_close(after.policy.params, params, atol=5e-6)
    if critic is not None:
        assert_trees_close(after.critic.params, critic_params, atol=5e-6)


@pytest.mark.parametrize("changes", [{}, GRPO], ids=["ppo", "grpo"])
def test_before_the_first_update_nothing_differs(learner_run, batch, changes):
    """Sampler, trainer and reference are one policy: KL 0, ratio 1."""
    _, metrics = learner_run(**changes).step(batch)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["policy/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["policy/clip_fraction"] == 0
    assert 0 <= metrics["rollout_gap"] < 2e-6


def test_the_kl_is_that_to_the_policy_at_the_start(learner_run, trajectories, full_logp):
    run = learner_run(**TRAINER | dict(kl_in="reward"))
    state, metrics = run.step(batch_of(trajectories), run.moved)
    del state
    logp = [
        (full_logp(t.ids, p)[own, t.ids[own]])
        for p in (run.moved.policy.params, run.start.policy.params)
        for t in trajectories
        for own in [np.flatnonzero(t.mask)]
    ]
    new, ref = np.concatenate(logp[:16]), np.concatenate(logp[16:])
    assert metrics["kl"] == pytest.approx((new - ref).mean(), rel=1e-4)


# What must not matter


@pytest.mark.parametrize("changes", [{}, GRPO], ids=["ppo", "grpo"])
def test_padding_does_not_matter(learner_run, trajectories, batch, changes):
    run = learner_run(**changes)
    other = batch_of(trajectories, pad_id=7)
    inside_BT = np.arange(LENGTH)[None] < np.array([[len(t.ids)] for t in trajectories])
    noise_BT = np.random.default_rng(2).integers(0, 24, inside_BT.shape)
    noisy = batch._replace(ids_BT=np.where(inside_BT, batch.ids_BT, noise_BT).astype(np.int32))
    after, metrics = run.step(batch)
    for variant in (other, noisy):
        assert np.any(variant.ids_BT != batch.ids_BT)
        after_variant, metrics_variant = run.step(variant)
        assert metrics_variant == pytest.approx(metrics, rel=1e-6, abs=1e-7)
        assert_trees_close(after_variant.policy.params, after.policy.params, atol=1e-7)


@pytest.mark.parametrize("garbage", [np.nan, -np.inf, 3.0])
def test_behaviour_logp_of_masked_tokens_does_not_matter(learner_run, batch, garbage):
    run = learner_run()
    logp_BT = np.where(batch.trains_BT == 1, batch.logp_BT, garbage).astype(np.float32)
    after, metrics = run.step(batch)
    after_garbage, metrics_garbage = run.step(batch._replace(logp_BT=logp_BT))
    assert metrics_garbage == pytest.approx(metrics, rel=1e-6, abs=1e-7)
    assert_trees_close(after_garbage, after, atol=1e-7)


@pytest.mark.parametrize("changes", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_trajectory_that_is_left_out_does_not_matter(learner_run, trajectories, changes):
    """Neither the reward nor the tokens of one that does not train reach loss, whitening, critic,
    or the baseline of its group."""
    run = learner_run(**changes)

    def step(left_out):
        left_out = dataclasses.replace(left_out, trains=False)
        return run.step(batch_of([*trajectories[:5], left_out, *trajectories[6:]]))

    after, metrics = step(trajectories[5])
    ids = (trajectories[5].ids + 1) % 24
    other = dataclasses.replace(trajectories[5], ids=ids, logp=trajectories[5].logp * 2)
    after_other, metrics_other = step(with_reward(other, 50.0))
    assert metrics_other == pytest.approx(metrics, rel=1e-6, abs=1e-7)
    assert_trees_close(after_other, after, atol=1e-7)
    assert metrics["policy/gradient_norm"] > 0
    assert metrics["trained_tokens"] == sum(
        t.mask.sum() for row, t in enumerate(trajectories) if row != 5
    )


def test_a_segment_earns_its_reward_where_it_ends(learner_run, trajectories):
    """With a discount it matters which segment a reward is for, though they add up to the same."""
    run = learner_run()
    row = next(i for i, t in enumerate(trajectories) if len(t.segment_rewards) > 2)
    early, late = (
        run.step(batch_of([*trajectories[:row], moved, *trajectories[row + 1 :]]))[0]
        for moved in (
            dataclasses.replace(
                with_reward(trajectories[row], 1.0),
                segment_rewards=np.eye(len(trajectories[row].segment_rewards), dtype="f4")[segment],
            )
            for segment in (0, -1)
        )
    )
    assert changed(first_gradient(early.policy), first_gradient(late.policy))


def test_the_order_of_trajectories_does_not_matter(learner_run, trajectories, batch):
    run = learner_run(**GRPO)
    after, metrics = run.step(batch)
    after_reversed, metrics_reversed = run.step(batch_of(trajectories[::-1]))
    assert metrics_reversed == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert_trees_close(
        first_gradient(after_reversed.policy), first_gradient(after.policy), atol=1e-6
    )


# Settings


def test_no_kl_without_one(learner_run, batch):
    run = learner_run(**ROLLOUT)
    assert run.start.kl_coefficient == 0
    assert run.step(batch, run.moved)[1]["kl"] == 0
    assert learner_run(**GRPO).start.kl_coefficient == np.float32(0.3)


def test_old_logp_of_rollout_and_trainer_agree(learner_run, batch):
    """Stored at sampling or computed again: the same, as the stored ones are exact."""
    after, metrics = learner_run(**ROLLOUT).step(batch)
    after_trainer, metrics_trainer = learner_run(**TRAINER).step(batch)
    assert metrics_trainer == pytest.approx(metrics, rel=1e-4, abs=2e-6)
    assert_trees_close(
        first_gradient(after_trainer.policy), first_gradient(after.policy), atol=1e-6
    )


def test_old_logp_of_the_trainer_ignores_the_stored_but_shows_the_gap(learner_run, batch):
    run = learner_run(**TRAINER)
    off = batch._replace(logp_BT=batch.logp_BT - 0.5 * batch.sampled_BT)
    after, metrics = run.step(batch)
    after_off, metrics_off = run.step(off)
    assert metrics.pop("rollout_gap") == pytest.approx(0, abs=2e-6)
    assert metrics_off.pop("rollout_gap") == pytest.approx(0.5, abs=2e-6)
    assert metrics_off == metrics
    assert_trees_close(after_off, after, rtol=0)


def test_unmasked_observations_train(learner_run, rl_policy, full_logp, trajectories, batch):
    """The ablation equals the loop over everything after the prompt."""
    run = learner_run(**TRAINER)
    everything = [
        dataclasses.replace(
            t,
            mask=(np.arange(len(t.ids)) >= t.prompt_length).astype(np.int32),
            segment_rewards=np.float32([t.reward]),
        )
        for t in trajectories
    ]
    after, metrics = run.step(batch_of(trajectories, mask_observations=False))
    oracle = Oracle(rl_policy, None, run.config, everything, full_logp)
    rows = oracle.prepare(run.start, run.start.policy.params)
    (loss, _, _), grads = oracle.policy(run.start.policy.params, rows, 0.0)
    params, norm = first_adam_step(run.start.policy.params, grads, 1e-4, 0.05)
    assert metrics["policy/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["policy/gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert metrics["trained_tokens"] == sum(t.mask.sum() for t in everything)
    # Tokens that were not sampled have no behaviour log-prob to differ from.
    assert metrics["rollout_gap"] == pytest.approx(0, abs=2e-6)
    assert_trees_close(after.policy.params, params, atol=5e-6)
    masked, _ = run.step(batch)
    assert changed(first_gradient(masked.policy), first_gradient(after.policy))


def test_advantages_over_observations_mask_the_loss_of_the_policy_alone(learner_run, trajectories):
    """Before the first update every ratio is 1 and every value the old one, so losses are means: of
    the policy over what it wrote, of the critic over all that follows the prompt."""
    changes = dict(entropy_coefficient=0.0, kl_in="none", whiten=False, lam=0.5)
    run = learner_run(**changes, old_logp="trainer", mask_advantages=False)
    batch = batch_of(trajectories, mask_observations=False)
    result = run.result(batch)
    prepared = [np.asarray(x) for x in result.prepared[-3:]]
    old_values_BT, advantages_BT, returns_BT = prepared
    sampled_BT, response_BT = batch.sampled_BT, batch.trains_BT
    assert response_BT.sum() > sampled_BT.sum()
    of_policy = -(advantages_BT * sampled_BT).sum() / sampled_BT.sum()
    of_critic = 0.5 * ((old_values_BT - returns_BT) ** 2 * response_BT).sum() / response_BT.sum()
    assert result.metrics["policy/loss"] == pytest.approx(of_policy, rel=1e-4)
    assert result.metrics["critic/loss"] == pytest.approx(of_critic, rel=1e-4)
    assert result.metrics["trained_tokens"] == sampled_BT.sum()
    # Masked throughout, both are something else.
    masked = learner_run(**changes, old_logp="trainer").result(batch_of(trajectories)).metrics
    assert masked["critic/loss"] != pytest.approx(of_critic, rel=1e-3)


def test_rows_of_a_batch_as_the_updates_had_them(
    learner_run, rl_policy, rl_critic, full_logp, stale
):
    """In the order asked for, against the loop over unpadded trajectories."""
    run = learner_run()
    oracle = Oracle(rl_policy, rl_critic, run.config, stale, full_logp)
    want = oracle.prepare(run.moved, run.start.policy.params)
    result = run.result(batch_of(stale), run.moved)
    rows = [5, 0, 11]
    got = run.learner.rows_of(result.prepared, rows)
    assert got.keys() == {"advantages", "values", "returns", "ref_logp"}
    for name, x_RT in got.items():
        assert isinstance(x_RT, np.ndarray) and x_RT.shape == (3, LENGTH)
        for x_T, row in zip(x_RT, rows):
            own = np.flatnonzero(stale[row].mask)
            wanted = want[row]["ref" if name == "ref_logp" else name]
            np.testing.assert_allclose(x_T[own], wanted, atol=2e-5)
            np.testing.assert_array_equal(np.delete(x_T, own), 0)
    result = learner_run(**ROLLOUT).result(batch_of(stale))
    assert learner_run(**ROLLOUT).learner.rows_of(result.prepared, [1]).keys() == {"advantages"}


def test_epochs_and_minibatches(learner_run, batch):
    run = learner_run(**EPOCHS)
    after, metrics = run.step(batch, seed=1, step=2)
    assert adam(after.policy.opt_state).count == 4
    again, metrics_again = run.step(batch, seed=1, step=2)
    assert metrics_again == metrics
    assert_trees_close(again, after, rtol=0)
    for other in (dict(seed=1, step=3), dict(seed=0, step=2)):
        shuffled, _ = run.step(batch, **other)
        assert changed(adam(shuffled.policy.opt_state).mu, adam(after.policy.opt_state).mu)
    # Later mini-batches meet a policy that has moved; the first does not.
    assert metrics["rollout_gap"] < 2e-6 < metrics["policy/old_logp_gap"]


DISPLACEMENT = GSPO | dict(ratio="token", displacement_coefficient=0.5, epochs=2)


@pytest.mark.parametrize(
    "changes", [ROLLOUT, DR_GRPO, GSPO, DISPLACEMENT], ids=["token", "constant", "sequence", "lld"]
)
def test_the_size_of_micro_batches_does_not_matter(learner_run, stale, changes):
    batch = batch_of(stale)
    after, metrics = learner_run(**changes).step(batch)
    after_one, metrics_one = learner_run(**changes | dict(micro_batch=16)).step(batch)
    assert metrics_one == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    got, want = (adam(x.policy.opt_state).mu for x in (after_one, after))
    assert_trees_close(got, want, atol=1e-7)


def test_displacement_is_that_of_the_favoured_tokens(learner_run, rl_policy, full_logp, stale):
    run = learner_run(**DISPLACEMENT | dict(learning_rate=1e-30))  # both epochs meet one policy
    oracle = Oracle(rl_policy, None, run.config, stale, full_logp)
    rows = oracle.prepare(run.start, run.start.policy.params)
    lost = [
        np.maximum(row["old"] - oracle.logp(run.start.policy.params, t), 0)[row["advantages"] >= 0]
        for row, t in zip(rows, stale)
    ]
    _, metrics = run.step(batch_of(stale))
    want = 0.5 * np.concatenate(lost).mean()
    assert metrics["policy/displacement_loss"] == pytest.approx(want, rel=1e-5)
    assert want > 0.01
    parts = [metrics[f"policy/{name}_loss"] for name in ("entropy", "displacement")]
    assert metrics["policy/loss"] == pytest.approx(metrics["policy/surrogate"] + sum(parts))


def test_the_kl_coefficient_is_steered_to_its_target(learner_run, stale, trajectories):
    run = learner_run(**GRPO | dict(kl_target=1e-3, kl_horizon=160))
    batch = batch_of(stale)
    after, metrics = run.step(batch, run.moved)
    assert metrics["kl_coefficient"] == pytest.approx(0.3) and metrics["kl"] > 2e-3
    # Far above the target: the most that 16 of 160 trajectories may do.
    assert float(after.kl_coefficient) == pytest.approx(0.3 * (1 + 0.2 * 0.1), rel=1e-6)
    _, again = run.step(batch, run.moved._replace(kl_coefficient=after.kl_coefficient))
    assert again["kl_coefficient"] == pytest.approx(0.306)
    assert again["policy/kl_loss"] == pytest.approx(1.02 * metrics["policy/kl_loss"], rel=1e-5)
    # Below it: 0 to the reference itself.
    after, _ = run.step(batch_of(trajectories))
    assert float(after.kl_coefficient) == pytest.approx(0.3 * (1 - 0.2 * 0.1), rel=1e-6)


@pytest.mark.parametrize("changes", [{}, GRPO], ids=["ppo", "grpo"])
def test_length_buckets_do_not_matter(learner_run, stale, changes):
    """Rows of like length in arrays of their own, or all in one of the longest length."""
    batch = batch_of(stale)
    one = learner_run(**changes)
    many = learner_run(**changes | dict(micro_batch=2, length_buckets=(7, 11, 17, LENGTH)))
    after, metrics = one.step(batch, one.moved)
    after_cut, metrics_cut = many.step(batch, many.moved)
    assert metrics_cut.pop("padding_share") < 0.2 < metrics.pop("padding_share")
    assert metrics_cut == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    for name in ("policy", "critic")[: 1 if changes else 2]:
        got, want = getattr(after_cut, name), getattr(after, name)
        assert_trees_close(first_gradient(got), first_gradient(want), atol=1e-6)


def test_sampling_temperature_reaches_the_log_probs(
    rl_policy, learner_run, full_logp, trajectories
):
    config = learner_run(**ROLLOUT).config
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    learner = Learner(rl_policy, None, config, mesh, trajectories=16, steps=1, temperature=0.6)
    rows = []
    for t in trajectories:
        logp = full_logp(t.ids, temperature=0.6)[np.arange(len(t.ids)), t.ids]
        rows.append(dataclasses.replace(t, logp=np.where(t.mask, logp, 0).astype(np.float32)))
    result = learner.step(learner.initial_state(), batch_of(rows), seed=0, step=1)
    assert result.metrics["rollout_gap"] < 4e-6


# Errors


@pytest.mark.parametrize(
    ("changes", "critic", "shape", "message"),
    [
        ({}, False, (1, 1, 1), "algorithm='ppo' needs a critic, but none was given"),
        (
            dict(algorithm="rloo"),
            True,
            (1, 1, 1),
            "algorithm='rloo' has none, but one was given",
        ),
        (
            dict(micro_batch=4),
            True,
            (4, 2, 1),
            "learner.micro_batch=4 does not divide over the 8 devices of mesh axes data and fsdp",
        ),
        (dict(minibatch_size=5), True, (1, 1, 1), "minibatch_size=5 does not divide the 16"),
    ],
)
def test_errors(rl_policy, rl_critic, changes, critic, shape, message):
    config = default_config()
    config.micro_batch = 8
    config.update(changes)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with pytest.raises(ValueError, match=message):
        Learner(rl_policy, rl_critic if critic else None, config, mesh, trajectories=16, steps=1)
