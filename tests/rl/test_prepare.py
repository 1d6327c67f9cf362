"""What the updates are given of a batch, against loops over the tokens that train alone."""

import dataclasses

import numpy as np
import pytest
from test_advantages import group_relative_loop, textbook_gae

from sr1_jax.rl.batch import make_batch
from sr1_jax.rl.prepare import Scores, prepare
from sr1_jax.rl.settings import default_config

LENGTH = 12


def settings(**changes):
    config = default_config()
    config.update(changes)
    return config


@pytest.fixture
def searchers(make_trajectory):
    """Two questions with three samples each, of one to three segments, each with a reward."""
    rng = np.random.default_rng(1)
    masks = [
        [0, 1, 1, 0, 0, 1, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 1, 0, 1],
        [0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1],
        [0, 1, 0, 0, 0, 0, 1, 1],
        [0, 1],
    ]
    made = []
    for row, mask in enumerate(masks):
        rewards = rng.normal(size=np.sum(np.diff(mask) > 0)).astype(np.float32)
        made.append(
            make_trajectory(
                ids=rng.integers(0, 9, len(mask)),
                mask=mask,
                logp=-rng.random(len(mask)).astype(np.float32) * np.float32(mask),
                question_id=str(row // 3),
                reward=float(rewards.sum()),
                segment_rewards=rewards,
            )
        )
    return made


def random_scores(seed=0, rows=6):
    rng = np.random.default_rng(seed)
    return Scores(*rng.normal(size=(3, rows, LENGTH)).astype(np.float32))


def prepared(trajectories, config, scores, kl_coefficient=0.1, **options):
    batch = make_batch(trajectories, length=LENGTH, pad_id=0, **options)
    return prepare(batch, scores, np.float32(kl_coefficient), config=config)


@pytest.mark.parametrize("kl_in", ["none", "reward"])
def test_rewards_of_segments_through_gae(searchers, kl_in):
    """What is not the policy's own is removed; each segment earns its reward on its last token."""
    config = settings(kl_in=kl_in, whiten=False, gamma=0.9, lam=0.8)
    scores = random_scores()
    got, _ = prepared(searchers, config, scores)
    for row, t in enumerate(searchers):
        own, rewards, segment = np.flatnonzero(t.mask), [], 0
        for index in own:
            last = index + 1 == len(t.mask) or not t.mask[index + 1]
            rewards.append(t.segment_rewards[segment] if last else 0.0)
            segment += last
            if kl_in == "reward":
                rewards[-1] -= 0.1 * (t.logp[index] - scores.ref_logp_BT[row, index])
        values = scores.values_BT[row, own]
        want = textbook_gae(np.array(rewards), values, 0.9, 0.8)
        np.testing.assert_allclose(got.advantages_BT[row, own], want, atol=1e-5)
        np.testing.assert_allclose(got.returns_BT[row, own], want + values, atol=1e-5)
        others = np.delete(np.arange(LENGTH), own)
        np.testing.assert_array_equal(got.advantages_BT[row, others], 0)


@pytest.mark.parametrize("kl_in", ["none", "reward"])
def test_advantages_over_observations_the_way_of_the_original(searchers, kl_in):
    """GAE steps over every token after the prompt; the KL is that of sampled tokens alone."""
    config = settings(kl_in=kl_in, whiten=False, gamma=0.9, lam=0.8, mask_advantages=False)
    scores = random_scores()
    got, metrics = prepared(searchers, config, scores, mask_observations=False)
    for row, t in enumerate(searchers):
        response = np.arange(t.prompt_length, len(t.ids))
        rewards, segment = [], 0
        for index in response:
            last = t.mask[index] and (index + 1 == len(t.mask) or not t.mask[index + 1])
            rewards.append(t.segment_rewards[segment] if last else 0.0)
            segment += last
            if kl_in == "reward" and t.mask[index]:
                rewards[-1] -= 0.1 * (t.logp[index] - scores.ref_logp_BT[row, index])
        values = scores.values_BT[row, response]
        want = textbook_gae(np.array(rewards), values, 0.9, 0.8)
        np.testing.assert_allclose(got.advantages_BT[row, response], want, atol=1e-5)
        np.testing.assert_allclose(got.returns_BT[row, response], want + values, atol=1e-5)
    assert metrics["trained_tokens"] == sum(t.mask.sum() for t in searchers)


def test_with_one_reward_at_the_end_returns_are_the_outcome(searchers):
    config = settings(kl_in="none", whiten=False)
    ended = [
        dataclasses.replace(t, segment_rewards=np.eye(len(t.segment_rewards), dtype="f4")[-1])
        for t in searchers
    ]
    got, _ = prepared(ended, config, random_scores())
    np.testing.assert_allclose(got.returns_BT, got.trains_BT, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
def test_groups_are_compared_by_what_a_trajectory_earns_in_all(searchers, algorithm):
    """However it is spread over segments: sums that differ by rounding alone differ by nothing."""
    spread = [np.float32([0.1, 0.2, 0.4]), np.float32([0.7]), np.float32([0.5, 0.2])]
    assert len({float(part.sum()) for part in spread}) > 1
    rows = [
        dataclasses.replace(t, reward=0.7, segment_rewards=part)
        for t, part in zip(searchers, spread)
    ]
    config = settings(algorithm=algorithm, kl_in="none")
    got, _ = prepared(rows, config, random_scores(rows=3))
    np.testing.assert_array_equal(got.advantages_BT, 0)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
def test_the_only_one_left_of_a_group_teaches_nothing(searchers, algorithm):
    """Its reward, of a wrong but well-formed answer say, would be pushed up as if it were good."""
    rows = [dataclasses.replace(t, trains=row in (0, 3, 4)) for row, t in enumerate(searchers)]
    config = settings(algorithm=algorithm, kl_in="none")
    got, _ = prepared(rows, config, random_scores())
    assert got.trains_BT[0].any()
    np.testing.assert_array_equal(got.advantages_BT[:3], 0)
    assert np.all(np.asarray(got.advantages_BT[3:5]).any(axis=1))


def test_grpo_learns_nothing_from_the_kl_of_a_group_of_equal_rewards(make_trajectory):
    """Four that are all wrong, and four that are not, with a KL in the reward."""
    rows = [
        make_trajectory(
            ids=[1] * 6, mask=[0] + [1] * 5, logp=np.zeros(6, np.float32),
            question_id=str(row // 4), reward=float(row == 5),
        )
        for row in range(8)
    ]  # fmt: skip
    scores = random_scores(rows=8)
    scores = scores._replace(ref_logp_BT=scores.ref_logp_BT / 100)
    config = settings(algorithm="grpo", kl_in="reward")
    got, metrics = prepared(rows, config, scores, kl_coefficient=0.001)
    assert metrics["kl"] != 0
    np.testing.assert_array_equal(got.advantages_BT[:4], 0)
    score_B = np.eye(8)[5] - 0.001 * (0 - scores.ref_logp_BT[:, 1:6]).sum(1)
    want = group_relative_loop(score_B[4:], np.zeros(4), 1e-6)
    np.testing.assert_allclose(got.advantages_BT[4:, 1], want, rtol=1e-4)


# The gap between sampler and trainer


@pytest.fixture
def certain(searchers):
    """Half of the tokens were sampled with probability 1."""
    rng = np.random.default_rng(4)
    return [
        dataclasses.replace(t, logp=np.where(rng.random(len(t.ids)) < 0.5, 0, t.logp))
        for t in searchers
    ]


def gap_of(trajectories, logp_BT):
    return np.concatenate(
        [
            np.abs(logp_BT[row, : len(t.ids)] - t.logp)[t.mask == 1]
            for row, t in enumerate(trajectories)
        ]
    ).mean()


@pytest.mark.parametrize("kl_in", ["none", "reward"])
def test_groups_of_one_keep_their_score(searchers, kl_in):
    """`reinforce` is GRPO's formula with every trajectory a group of its own."""
    config = settings(algorithm="reinforce", kl_in=kl_in)
    scores = random_scores()
    got, _ = prepared(searchers, config, scores)
    for row, t in enumerate(searchers):
        own = np.flatnonzero(t.mask)
        score = t.reward
        if kl_in == "reward":
            score -= 0.1 * (t.logp[own] - scores.ref_logp_BT[row, own]).sum()
        alone = group_relative_loop([score], [0], 1e-6)
        np.testing.assert_allclose(got.advantages_BT[row, own], alone[0], atol=1e-5)
        np.testing.assert_array_equal(np.delete(got.advantages_BT[row], own), 0)


@pytest.mark.parametrize("mask_observations", [True, False])
def test_the_gap_is_that_of_all_sampled_tokens(certain, mask_observations):
    """Those sampled with probability 1 among them, and observations never."""
    config = settings(algorithm="rloo", kl_in="none", old_logp="trainer")
    scores = random_scores()
    _, metrics = prepared(certain, config, scores, mask_observations=mask_observations)
    assert metrics["rollout_gap"] == pytest.approx(gap_of(certain, scores.logp_BT), rel=1e-5)


def test_tokens_of_probability_one_have_an_importance_weight(certain):
    config = settings(algorithm="reinforce_pp", kl_in="none", old_logp="trainer")
    scores = random_scores()
    plain, _ = prepared(certain, config, scores)
    config.importance_cap = 1.5
    weighted, _ = prepared(certain, config, scores)
    for row, t in enumerate(certain):
        own = np.flatnonzero(t.mask)
        weight = np.minimum(np.exp(scores.logp_BT[row, own] - t.logp[own]), 1.5)
        np.testing.assert_allclose(
            weighted.advantages_BT[row, own], plain.advantages_BT[row, own] * weight, rtol=1e-5
        )
