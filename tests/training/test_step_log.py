"""What a step leaves behind, above all the step that ends a run."""

import json
import math

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.trajectory_log import read_trajectories
from sr1_jax.training.dynamic_sampling import Sampled
from sr1_jax.training.step_agreement import agree
from sr1_jax.training.step_log import StepLog, check_finite, rollout_metrics
from sr1_jax.training.stopwatch import Stopwatch

METRICS = {"reward": 0.5, "em": 0.25, "searches": 1.0, "policy/entropy": 0.7}


@pytest.fixture
def sampled(make_trajectory):
    """Two groups of two; the second was dropped, and one of the first does not train."""
    rewards = [(1.0, True), (0.0, False), (0.0, True), (0.0, True)]
    trajectories = [
        make_trajectory(
            question_id=f"q:{number // 2}",
            sample=number % 2,
            reward=reward,
            trains=trains,
            rewards={"em": reward, "overlong": 0.5 * number},
        )
        for number, (reward, trains) in enumerate(rewards)
    ]
    questions = [Question(f"q:{i}", "?", ("x",)) for i in range(2)]
    groups = [trajectories[:2], trajectories[2:]]
    return Sampled(questions, groups, [0], {"groups/degenerate": 0.5})


def test_metrics_of_all_and_of_those_that_train(sampled):
    metrics = rollout_metrics(sampled)
    assert (metrics["reward"], metrics["trained_reward"]) == (0.25, 1.0)
    assert (metrics["reward/em"], metrics["reward/overlong"]) == (0.25, 0.75)
    assert metrics["groups/degenerate"] == 0.5 and metrics["context_tokens"] == 2.0


def test_where_nothing_trains(sampled, make_trajectory):
    groups = [[make_trajectory(trains=False, reward=1.0, rewards={"em": 1.0})]]
    metrics = rollout_metrics(sampled._replace(groups=groups, questions=sampled.questions[:1]))
    assert metrics["trained_reward"] == 0.0 and "groups/degenerate" not in metrics


def test_a_row_that_is_not_finite_is_written_before_the_run_ends(
    tmp_path, sampled, small_tokenizer
):
    """Formerly the run ended without it."""
    learned = {"policy/loss": math.nan, "critic/loss": 0.5, "policy/gradient_norm": math.inf}
    log = StepLog(tmp_path, small_tokenizer, steps=9, start=0)
    with pytest.raises(FloatingPointError) as error, log:
        arrays = {"values": np.ones((1, 5), np.float32)}
        log.write(3, METRICS | learned, sampled.trained, [1], arrays)
        check_finite(3, learned)
    message = str(error.value)
    assert message.startswith("Step 3: policy/loss, policy/gradient_norm not finite.")
    assert "Lower learner.learning_rate" in message and "\n" not in message
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["step"] == 3 and row["critic/loss"] == 0.5
    assert row["policy/loss"] is None and row["policy/gradient_norm"] is None
    (kept,) = read_trajectories(tmp_path / "trajectories" / "step-000003.jsonl")
    assert kept["sample"] == 1 and kept["values"].tolist() == [1.0, 1.0]


def test_finite_figures_go_on():
    check_finite(3, {"policy/loss": -0.5, "kl": 0.0})


def test_one_process_agrees_with_itself():
    agreed = agree({"loss": 1.0}, told_to_end=True)
    assert agreed.metrics == {"loss": 1.0} and agreed.told_to_end is True
    assert 0.01 < agreed.peak_memory_gib < 1000


def test_parts_are_measured_by_name(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr("sr1_jax.training.stopwatch.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    with watch("step"):  # 0 to 6
        with watch("rollout"):  # 1 to 4
            pass
        with watch("rollout"):  # 5 to 6
            pass
    assert watch.metrics() == {"seconds/rollout": 4.0, "seconds/step": 10.0}
