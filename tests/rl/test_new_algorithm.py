"""The example of docs/new_algorithm.md: an estimator in one file and one line of a table."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from learner_runs import LearnerRun, batch_of, learner_config
from trees import changed

from sr1_jax.rl import estimators
from sr1_jax.rl.settings import check_config, needs_critic
from sr1_jax.sharding import make_mesh

DOCS = Path(__file__).parents[2] / "docs" / "new_algorithm.md"


@pytest.fixture
def batch_mean(monkeypatch):
    """Adds what the page shows: the file, run as a module, and the line, as it is in the table."""
    section = DOCS.read_text().split("# A new algorithm")[1]
    file, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    names = {}
    exec(file, names)
    (entry,) = eval("{" + line + "}", names | vars(estimators)).items()
    monkeypatch.setitem(estimators.ESTIMATORS, *entry)
    return entry[0]


def test_a_step_with_a_new_estimator(batch_mean, rl_policy, stale):
    config = learner_config(algorithm=batch_mean, kl_in="none", ratio="sequence")
    check_config(config, len(stale))
    assert not needs_critic(config)
    run = LearnerRun(rl_policy, None, config, make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    state, metrics, prepared = run.result(batch_of(stale))
    assert changed(state.policy.params, run.start.policy.params)
    assert np.isfinite(list(metrics.values())).all()
    rows = run.learner.rows_of(prepared, range(len(stale)))
    rewards = np.array([t.reward for t in stale])
    for row, t, advantage in zip(rows["advantages"], stale, rewards - rewards.mean()):
        np.testing.assert_allclose(row[: len(t.ids)], advantage * t.mask, atol=1e-6)
        assert not row[len(t.ids) :].any()
