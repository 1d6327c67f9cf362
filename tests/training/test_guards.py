"""Guards: what they decide after a step, and where a run goes back to."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.guards import Diverged, Guards
from sr1_jax.training.settings import default_config

FINE = {"policy/skipped": 0.0, "critic/skipped": 0.0, "policy/entropy": 1.0, "reward": 0.5}
SKIPPED = FINE | {"policy/skipped": 2.0, "policy/loss": math.nan}


@pytest.fixture
def settings():
    settings = default_config().guards
    settings.window, settings.patience = 5, 2
    return settings


@pytest.fixture
def checkpoints(tmp_path):
    with RunCheckpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        yield checkpoints


class Learner:
    @property
    def abstract_state(self):
        return {"x": jax.ShapeDtypeStruct((3,), "float32", sharding=jnp.zeros(3).sharding)}


def state(value):
    return {"x": jnp.full(3, value)}


def actions(guards, rows):
    return [guards.judge(step, row).action for step, row in enumerate(rows, start=1)]


def test_skipped_steps_in_a_row(settings, capsys):
    settings.most_skipped = 3
    guards = Guards(settings, 7, {})
    rows = [FINE, SKIPPED, SKIPPED, FINE, SKIPPED, FINE | {"critic/skipped": 1.0}, SKIPPED]
    found = ["off", "warn", "warn", "off", "warn", "warn", "roll_back"]
    assert actions(guards, rows) == found
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        "Step 2: 2 updates were skipped (policy/loss not finite), in 1 steps in a row; warn."
    )
    assert len(said) == 5


def test_a_step_is_good_if_nothing_was_wrong(settings):
    guards = Guards(settings, 7, {})
    assert guards.judge(1, FINE).good and not guards.judge(2, SKIPPED).good
    assert guards.judge(3, FINE).good


@pytest.mark.parametrize("action", ["off", "warn", "lower_rate", "roll_back", "stop"])
def test_what_an_alarm_does(settings, action, capsys):
    settings.alarms.entropy.action, settings.rate_factor = action, 0.25
    guards = Guards(settings, 7, {})
    actions(guards, [FINE] * 5)
    first = guards.judge(6, FINE | {"policy/entropy": 1e-4})
    # Not yet an alarm, but nothing to go back to if one would undo it.
    assert (first.action, first.good) == ("off", action not in ("roll_back", "stop"))
    second = guards.judge(7, FINE | {"policy/entropy": 1e-4})
    assert second.action == action and second.undoes == (action in ("roll_back", "stop"))
    assert guards.rate_scale == (0.25 if action == "lower_rate" else 1.0)
    assert second.metrics["guards/alarms"] == (action != "off")
    assert second.metrics["guards/deviation/entropy"] < -8
    assert ("guards.alarms.entropy" in capsys.readouterr().out) == (action != "off")


def test_the_strictest_action_counts(settings):
    settings.alarms.entropy.action, settings.alarms.reward.action = "lower_rate", "stop"
    guards = Guards(settings, 7, {})
    low = FINE | {"policy/entropy": 1e-4, "reward": -1.0}
    verdict = [guards.judge(step, row) for step, row in enumerate([*[FINE] * 5, low, low])][-1]
    assert verdict.action == "stop" and guards.rate_scale == 1.0
    (reason,) = verdict.reasons
    assert reason.startswith("mean reward is -1, -75.0 deviations from the median of 5 steps")


def test_seeds_change_with_the_number_of_roll_backs(settings):
    seeds = [Guards(settings, seed, {"roll_backs": n}).seed for seed in (0, 1) for n in range(4)]
    assert (seeds[0], seeds[4]) == (0, 1)  # a run that never went back draws as ever
    assert len(set(seeds)) == 8 and all(0 <= seed < 2**32 for seed in seeds)


def test_back_to_the_newest_good_checkpoint(settings, checkpoints):
    settings.most_skipped, settings.alarms.entropy.action = 2, "lower_rate"
    guards = Guards(settings, 7, {})
    actions(guards, [FINE] * 4)
    checkpoints.save(4, state(4.0), {"position": 16} | guards.facts())
    guards.judge(5, SKIPPED)
    checkpoints.save(5, state(5.0), {"position": 20} | guards.facts(), good=False)  # told to end
    guards.rate_scale = 0.5
    verdict = guards.judge(6, SKIPPED)
    assert verdict.undoes
    restored, step = guards.go_back(6, verdict, checkpoints, Learner())
    assert step == 4 and restored["x"].tolist() == [4.0] * 3
    assert (guards.roll_backs, guards.rate_scale) == (1, 0.5)
    assert checkpoints.steps == [4]
    assert guards.judge(5, SKIPPED).action == "warn"  # one in a row
    # The history is that of the checkpoint: 4 steps and this one are not more than 5.
    assert len(guards.facts()["guards"]["history"]["entropy"]) == 5
    checkpoints.save(5, state(5.5), guards.facts())
    assert checkpoints.restore(5, Learner().abstract_state)["x"].tolist() == [5.5] * 3


def test_what_guards_know_is_in_the_checkpoint(settings):
    settings.most_skipped = 2
    guards = Guards(settings, 7, {"roll_backs": 1, "rate_scale": 0.25})
    actions(guards, [FINE] * 4 + [SKIPPED])
    again = Guards(settings, 7, json.loads(json.dumps(guards.facts()))["guards"])
    assert (again.roll_backs, again.rate_scale, again.seed) == (1, 0.25, guards.seed)
    assert guards.judge(6, SKIPPED) == again.judge(6, SKIPPED)


def end_of(guards, step, row, checkpoints):
    verdict = guards.judge(step, row)
    with pytest.raises(Diverged) as error:
        guards.go_back(step, verdict, checkpoints, Learner())
    assert isinstance(error.value, FloatingPointError) and "\n" not in str(error.value)
    return str(error.value)


def test_a_run_that_went_back_too_often_ends(settings, checkpoints):
    settings.most_skipped, settings.most_roll_backs = 1, 2
    guards = Guards(settings, 7, {"roll_backs": 2})
    checkpoints.save(3, state(3.0), guards.facts())
    message = end_of(guards, 4, SKIPPED, checkpoints)
    assert "and the run has gone back 2 times (guards.most_roll_backs=2)" in message
    assert f"after step 3 in {checkpoints.folder} is good" in message
    assert "Lower learner.learning_rate" in message
    assert checkpoints.restore(3, Learner().abstract_state)["x"].tolist() == [3.0] * 3


def test_a_run_with_nothing_to_go_back_to_ends(settings, checkpoints):
    settings.most_skipped = 1
    message = end_of(Guards(settings, 7, {}), 1, SKIPPED, checkpoints)
    assert "There is no good checkpoint to go back to" in message and "checkpoint.every" in message


def test_an_alarm_may_stop_the_run(settings, checkpoints):
    settings.alarms.reward.action, settings.patience = "stop", 1
    guards = Guards(settings, 7, {})
    actions(guards, [FINE] * 5)
    checkpoints.save(5, state(5.0), guards.facts())
    message = end_of(guards, 6, FINE | {"reward": -2.0}, checkpoints)
    assert message.startswith("Step 6: mean reward is -2") and "after step 5" in message


# What is kept


def test_the_best_and_the_newest_good_checkpoint_are_kept(tmp_path):
    def told(step):
        """(score, good) of each step."""
        return {2: (0.5, True), 3: (0.9, True), 4: (0.9, True), 7: (0.2, False), 8: (None, False)}

    with RunCheckpoints(tmp_path, keep=1) as checkpoints:
        seen = []
        for step in range(1, 9):
            score, good = told(step).get(step, (None, True))
            seen.append(checkpoints.is_best(score))
            checkpoints.save(step, state(step), {}, score=score, good=good)
        assert seen == [False, True, True, False, False, False, False, False]
        assert (checkpoints.steps, checkpoints.best_step, checkpoints.last_good) == (
            [3, 6, 8],
            3,
            6,
        )
    with RunCheckpoints(tmp_path, keep=1) as again:  # a run taken up knows it too
        assert (again.best_step, again.last_good) == (3, 6)
        assert again.is_best(0.95) and not again.is_best(0.9)
        again.save(9, state(9), {}, score=0.95)
        assert again.steps == [9] and again.best_step == 9
    folders = sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit())
    assert folders == ["9"]


def test_checkpoints_of_before_are_good_and_have_no_score(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state(1.0)), facts=ocp.args.JsonSave({"position": 4})
        )
        manager.save(1, args=args)
    with RunCheckpoints(tmp_path, keep=1) as checkpoints:
        assert (checkpoints.best_step, checkpoints.last_good) == (None, 1)
        assert np.array_equal(checkpoints.restore(1, Learner().abstract_state)["x"], np.ones(3))
        checkpoints.save(2, state(2.0), {})
        assert checkpoints.steps == [2]
