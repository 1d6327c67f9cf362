"""Whole runs with something planted: they recover, or end with one message and what was saved."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_runs import saved_state

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.evaluation.trajectory_log import read_trajectories, write_trajectories
from sr1_jax.rl.learner import Learner
from sr1_jax.train import train
from sr1_jax.training import loop, step_log
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.guards import Diverged

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")


@pytest.fixture
def plant(monkeypatch):
    """Function of (steps, where, seed=0): plants NaN into these steps of a run, "gradient" or
    "reward", as long as it draws by that seed; None: by any."""

    def put(steps, where, seed=0):
        step_of, make_batch = Learner.step, loop.make_batch
        now = {}

        def chosen():
            return now["step"] in steps and seed in (None, now["seed"])

        roll_out = loop.roll_out

        def noted(engine, stream, config, step, params, *, seed):
            now.update(step=step, seed=seed)
            return roll_out(engine, stream, config, step, params, seed=seed)

        def batch_with_nan(*arguments, **named):
            batch = make_batch(*arguments, **named)
            if where == "reward" and chosen():
                batch.rewards_BT[0, np.flatnonzero(batch.trains_BT[0])[-1]] = np.nan
            return batch

        def step_with_nan(self, *arguments, **named):
            update = self._update_policy
            zeros = update.zeros
            if where == "gradient" and chosen():  # sums start from NaN; the loss is finite
                update.zeros = lambda params: jax.tree.map(lambda x: x * jnp.nan, zeros(params))
            try:
                return step_of(self, *arguments, **named)
            finally:
                update.zeros = zeros

        monkeypatch.setattr(loop, "roll_out", noted)
        monkeypatch.setattr(loop, "make_batch", batch_with_nan)
        monkeypatch.setattr(Learner, "step", step_with_nan)

    return put


def facts_of(workdir, step):
    with RunCheckpoints(workdir / "checkpoints", keep=9) as checkpoints:
        return checkpoints.facts(step)


def test_a_planted_gradient_is_skipped(derived, finished, plant, tmp_path, equal_trees, capsys):
    """Until then the run is that without it, and it goes on after it."""
    plant({2}, "gradient")
    derived.checkpoint.every, derived.steps = 1, 3
    train(derived, tmp_path)
    rows = read_metrics(tmp_path)
    assert [row["policy/skipped"] for row in rows] == [0, 1, 0]
    assert rows[1]["policy/gradient_norm"] is None and rows[1]["policy/loss"] is not None
    assert all(row["policy/gradient_norm"] > 0 for row in (rows[0], rows[2]))
    assert "Step 2: 1 updates were skipped (policy/gradient_norm not" in capsys.readouterr().out
    with RunCheckpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        assert checkpoints.steps == [1, 3]  # what is saved is good
    first, last = (saved_state(tmp_path, step) for step in (1, 3))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(last))
    count = [x for x in jax.tree.leaves(first["policy"]["opt_state"]) if x.dtype == np.int32]
    after = [x for x in jax.tree.leaves(last["policy"]["opt_state"]) if x.dtype == np.int32]
    assert count and all(b == a + 1 for a, b in zip(count, after))


def asked_in(workdir, step):
    rows = read_trajectories(workdir / "trajectories" / f"step-{step:06d}.jsonl")
    return {row["question_id"] for row in rows}


def test_planted_rewards_are_rolled_back(
    derived, finished, plant, tmp_path, capsys, same_run, monkeypatch
):
    """Three steps in a row: back to the last good checkpoint, and on with other draws. Told to end
    among the three, before the last of them or in it, and started again, it is the same run."""
    plant({3, 4, 5}, "reward")
    derived.steps = 6
    train(derived, tmp_path / "whole")
    said = capsys.readouterr().out
    assert "Roll-back 1: on from step 2, with other draws." in said
    rows = read_metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["guards/roll_backs"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert all(row["policy/skipped"] == 0 for row in rows)
    undone = (tmp_path / "whole" / "undone" / "1.jsonl").read_text().splitlines()
    assert len(undone) == 3 and all('"policy/loss": null' in line for line in undone)
    facts = facts_of(tmp_path / "whole", 6)
    assert facts["guards"]["roll_backs"] == 1
    assert facts["position"] == derived.questions * (6 + 3)
    assert asked_in(tmp_path / "whole", 2) == asked_in(finished.workdir, 2)
    assert asked_in(tmp_path / "whole", 3) != asked_in(finished.workdir, 3)

    ends = {3: r"saved after step 4\. Start", 4: r"goes on from its last checkpoint\. Start"}
    for told_in, message in ends.items():
        run = tmp_path / f"cut {told_in}"

        def told_to_end(folder, step, *rest, told_in=told_in, **named):
            write_trajectories(folder, step, *rest, **named)
            if step == told_in:  # noticed in the next one
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(step_log, "write_trajectories", told_to_end)
            with pytest.raises(InterruptedError, match=message):
                train(derived, run)
        assert facts_of(run, 4)["guards"]["skipped"] == 2 if told_in == 3 else True
        train(derived, run)
        same_run(run, tmp_path / "whole", steps=(2, 4, 6))


def test_what_does_not_mend_ends_the_run(derived, finished, plant, tmp_path, equal_trees):
    """Whatever the draws: one message, and the last good checkpoint is what it was."""
    plant({3, 4, 5, 6}, "gradient", seed=None)
    derived.steps, derived.guards.most_skipped, derived.guards.most_roll_backs = 6, 2, 1
    with pytest.raises(Diverged) as error:
        train(derived, tmp_path)
    message = str(error.value)
    assert message.startswith("Step 4: 1 updates were skipped") and "\n" not in message
    assert "has gone back 1 times (guards.most_roll_backs=1)" in message
    assert "The checkpoint after step 2 in" in message
    equal_trees(saved_state(tmp_path, 2), saved_state(finished.workdir, 2))
    with RunCheckpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        assert checkpoints.steps == [2]


@pytest.mark.parametrize("action", ["stop", "roll_back", "lower_rate"])
def test_a_rate_times_1000(derived, tmp_path, action, capsys, equal_trees):
    """The run is quiet for eight steps, then started again with a rate that breaks it."""
    derived.steps, derived.learner.learning_rate = 8, 1e-4
    derived.guards.window, derived.guards.patience = 6, 1
    for alarm in derived.guards.alarms.values():
        alarm.action = action
    derived.guards.rate_factor = 1e-3
    train(derived, tmp_path)
    assert not any(row["guards/alarms"] for row in read_metrics(tmp_path))
    before = saved_state(tmp_path, 8)
    derived.steps, derived.learner.learning_rate = 14, 0.1
    if action == "lower_rate":
        train(derived, tmp_path)
        rows = read_metrics(tmp_path)
        assert [row["step"] for row in rows] == list(range(1, 15))
        assert rows[-1]["guards/rate_scale"] <= 1e-3
        assert rows[-1]["policy/learning_rate"] == pytest.approx(
            0.1 * rows[-2]["guards/rate_scale"]
        )
        return
    with pytest.raises(Diverged) as error:
        train(derived, tmp_path)
    message = str(error.value)
    assert "deviations from the median" in message and "\n" not in message
    assert ("has gone back 2 times" in message) == (action == "roll_back")
    with RunCheckpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        good = checkpoints.last_good
    assert f"after step {good} in" in message
    equal_trees(saved_state(tmp_path, 8), before)


def test_the_best_policy_is_kept(derived, tmp_path, monkeypatch):
    """Its score comes in step 1; the newest checkpoints push it out no more."""
    scores = iter([0.75, 0.25, 0.5, 0.25])
    monkeypatch.setattr(
        "sr1_jax.training.development.Development.while_training",
        lambda self, params: {"greedy/em": next(scores)},
    )
    derived.evaluation.every, derived.checkpoint.every, derived.checkpoint.keep = 1, 2, 1
    train(derived, tmp_path)
    with RunCheckpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        assert checkpoints.steps == [1, 4] and checkpoints.best_step == 1
