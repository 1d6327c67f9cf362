"""What trajectories of a real run say of their turns, and what terms of the reward count."""

import sys

import numpy as np
import pytest

from sr1_jax.rewards.settings import REWARD
from sr1_jax.rollout.stats import as_metrics

OWN = """
class Asked:
    batched = True

    def __init__(self):
        self.total = 0

    def __call__(self, trajectories, questions):
        self.total += len(trajectories)
        return [0.0] * len(trajectories)

    def counts(self):
        return {"asked_items": float(self.total)}

asked = Asked()
"""


def reward_settings(**changes):
    config = REWARD.defaults()
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def run(make_engine, questions):
    """Of a policy that babbles: all kinds of turns come up."""
    terms = (("em", 1.0), ("search_cost", -0.1), ("invalid_segments", -0.3))
    engine = make_engine(reward=reward_settings(terms=terms), max_context_tokens=140)
    return engine.run(questions, seed=1, samples=6)


def test_every_segment_acts_or_says_why_not(run):
    reasons = set()
    for t in run:
        acted = {call.segment for call in t.calls}
        assert len(acted) == len(t.calls)
        if t.status == "answered":
            acted.add(t.segments - 1)
        invalid = set(t.invalid_segments)
        assert not acted & invalid and acted | invalid <= set(range(t.segments))
        left = set(range(t.segments)) - acted - invalid
        # Only a context that was full leaves a segment that is neither.
        assert left <= ({t.segments - 1} if t.status == "truncated" else set())
        reasons |= set(t.invalid_segments.values())
        overflowed = list(t.invalid_segments.values()).count("overflowed")
        assert overflowed == t.overflowed_segments
    assert reasons == {"malformed", "refused", "overflowed"}


def test_costs_are_on_the_turns_that_earned_them(run):
    for t in run:
        want = np.zeros(t.segments)
        for call in t.calls:
            want[call.segment] -= 0.1
        for segment in t.invalid_segments:
            want[segment] -= 0.3
        want[-1] += t.rewards["em"]
        np.testing.assert_allclose(t.segment_rewards, want, atol=1e-6)
        assert t.rewards["search_cost"] == len(t.searches)


def test_what_terms_count_is_logged_run_by_run(make_engine, questions, tmp_path, monkeypatch):
    (tmp_path / "own_counting.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    engine = make_engine(reward=reward_settings(terms=(("own_counting:asked", 1.0),)))
    for samples in (2, 1):
        engine.run(questions, seed=1, samples=samples)
        assert engine.stats["asked_items"] == len(questions) * samples
        assert as_metrics(engine.stats)["rollout/asked_items"] == len(questions) * samples
    sys.modules.pop("own_counting", None)
