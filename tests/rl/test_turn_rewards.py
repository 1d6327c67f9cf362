"""From a term with a value a segment to advantages: what a penalty on the second of three turns
changes, by the definition of each estimator."""

import dataclasses

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.environment import SearchRecord
from sr1_jax.environment.trajectory import Call
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import Reward
from sr1_jax.rewards.settings import REWARD
from sr1_jax.rl.batch import make_batch
from sr1_jax.rl.prepare import Scores, prepare
from sr1_jax.rl.settings import default_config

QUESTION = Question("q", "Who?", ("Bob",))
LENGTH = 16
# Prompt, then three segments of 3, 2 and 4 tokens with observations between them.
MASK = [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1]
OWN = np.flatnonzero(MASK)
TURN_OF_OWN = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
PENALTY = 0.3
TERMS = (("em", 1.0), ("repeated_queries", -PENALTY))


def searcher(make_trajectory, queries, answer="Bob", sample=0, mask=MASK, question=QUESTION):
    """Searches in the first two turns, answers in the third."""
    rng = np.random.default_rng(sample)
    calls = [Call("search", q, SearchRecord([q], [[]]), turn) for turn, q in enumerate(queries)]
    return make_trajectory(
        ids=rng.integers(0, 9, len(mask)), mask=mask, segments=3, calls=calls, answer=answer,
        sample=sample, question_id=question.id,
    )  # fmt: skip


def rewarded(trajectories, question=QUESTION, **changes):
    config = REWARD.defaults()
    config.terms = TERMS
    config.update(changes)
    return Reward(config, 100).score(trajectories, [question] * len(trajectories))


def advantages(trajectories, values=None, **changes):
    config = default_config()
    config.update(dict(kl_in="none", whiten=False) | changes)
    batch = make_batch(trajectories, length=LENGTH, pad_id=0)
    nothing = np.zeros((len(trajectories), LENGTH), np.float32)
    scores = Scores(nothing, nothing, nothing if values is None else values)
    found, _ = prepare(batch, scores, np.float32(0), config=config)
    return np.asarray(found.advantages_BT), np.asarray(found.returns_BT)


@pytest.fixture
def pair(make_trajectory):
    """The same trajectory, once with a fresh query in its second turn and once with a repeat."""
    fresh, repeat = (searcher(make_trajectory, ["a", second]) for second in "bA")
    return rewarded([fresh, repeat])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.5), (0.7, 0.0)])
def test_a_penalty_reaches_the_turns_up_to_its_own_and_none_after(pair, gamma, lam):
    """A_t = sum over k >= t of (gamma lam)^(k - t) delta_k, where t and k count the policy's own
    tokens: a penalty on token e adds -p (gamma lam)^(e - t) to A_t for t <= e, nothing for t > e.
    """
    np.testing.assert_allclose(pair[1].segment_rewards, [0, -PENALTY, 1])
    values = np.random.default_rng(0).normal(size=(1, LENGTH)).astype(np.float32)
    values = np.concatenate([values, values])
    got, returns = advantages(pair, values, algorithm="ppo", gamma=gamma, lam=lam)
    charged = 4  # the place of the last own token of the second turn among the own tokens
    assert TURN_OF_OWN[charged] == 1 and TURN_OF_OWN[charged + 1] == 2
    want = [
        -PENALTY * (gamma * lam) ** (charged - t) if t <= charged else 0.0 for t in range(len(OWN))
    ]
    np.testing.assert_allclose((got[1] - got[0])[OWN], want, atol=2e-6)
    np.testing.assert_allclose((returns[1] - returns[0])[OWN], want, atol=2e-6)
    others = np.delete(np.arange(LENGTH), OWN)
    np.testing.assert_array_equal(got[:, others], 0)


def test_observations_count_as_if_they_were_not_there(pair, make_trajectory):
    """Masked equals removed: the own tokens alone, rewards where they were."""
    values = np.random.default_rng(1).normal(size=(2, LENGTH)).astype(np.float32)
    got, _ = advantages(pair, values, algorithm="ppo", gamma=0.9, lam=0.8)
    for row, t in enumerate(pair):
        rewards = np.zeros(len(OWN))
        rewards[[2, 4, 8]] = t.segment_rewards
        following, want = 0.0, np.zeros(len(OWN))
        own_values = np.append(values[row, OWN], 0.0)
        for place in range(len(OWN) - 1, -1, -1):
            delta = rewards[place] + 0.9 * own_values[place + 1] - own_values[place]
            want[place] = following = delta + 0.9 * 0.8 * following
        np.testing.assert_allclose(got[row, OWN], want, atol=1e-5)


def test_rewards_to_go_of_reinforce(pair):
    """Before they are standardised: every token is charged for what comes at or after it."""
    got, _ = advantages(pair, algorithm="reinforce_pp", gamma=1.0)
    to_go = np.array([[1.0] * 9, [0.7] * 5 + [1.0] * 4]).ravel()
    want = (to_go - to_go.mean()) / np.sqrt(to_go.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(got[:, OWN].ravel(), want, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
def test_groups_compare_sums(make_trajectory, algorithm):
    """Right and fresh 1, right with a repeat 0.7, wrong 0, wrong with two repeats -0.6."""
    cases = [("ab", "Bob"), ("aA", "Bob"), ("ab", "Al"), (["a\na", "a"], "Al")]
    group = []
    for sample, (queries, answer) in enumerate(cases):
        t = searcher(make_trajectory, list(queries), answer, sample)
        calls = [
            c._replace(record=SearchRecord(c.request.split(), [[]] * len(c.request.split())))
            for c in t.calls
        ]
        group.append(dataclasses.replace(t, calls=calls))
    group = rewarded(group)
    score = np.array([1.0, 0.7, 0.0, -0.6])
    np.testing.assert_allclose([t.reward for t in group], score, atol=1e-6)
    np.testing.assert_allclose(group[3].segment_rewards, [-0.3, -0.3, 0], atol=1e-6)
    got, _ = advantages(group, algorithm=algorithm)
    want = {
        "grpo": (score - score.mean()) / (score.std(ddof=1) + 1e-6),
        "dr_grpo": score - score.mean(),
        "rloo": np.array([s - (score.sum() - s) / 3 for s in score]),
    }[algorithm]
    for row in range(4):
        # One advantage a trajectory, on all of its own tokens and no others.
        np.testing.assert_allclose(got[row, OWN], want[row], rtol=1e-4, atol=1e-5)
        assert np.count_nonzero(got[row]) == len(OWN)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_terms_of_turns_and_of_episodes_meet_in_one_sum(make_trajectory, algorithm):
    """Two trajectories that earn the same in all are the same to whoever compares samples."""
    gold = [[Passage("1", "T", "Bob", 1.0)]]
    found, cost = (("retrieval_at_search", 0.5), ("search_cost", -0.25))
    one = searcher(make_trajectory, ["a", "b"])
    first = one.calls[0]._replace(record=SearchRecord(["a"], gold))
    two = dataclasses.replace(one, calls=[first, one.calls[1]], sample=1)
    three = dataclasses.replace(one, calls=[], sample=2)
    group = rewarded([two, three], terms=(("em", 1.0), found, cost))
    assert [t.reward for t in group] == [1.0, 1.0]
    np.testing.assert_allclose(group[0].segment_rewards, [0.25, -0.25, 1])
    got, _ = advantages(group, algorithm=algorithm)
    same = np.allclose(got[0], got[1], atol=1e-6)
    assert same is (algorithm not in ("ppo", "reinforce_pp"))
    if algorithm in ("grpo", "dr_grpo", "rloo"):
        np.testing.assert_array_equal(got, 0)
