"""What a step leaves behind, above all the step that ends a run."""

import json
import math

import jax
import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.evaluation.trajectory_log import read_trajectories
from sr1_jax.sharding import named
from sr1_jax.training.dynamic_sampling import Sampled
from sr1_jax.training.settings import default_config
from sr1_jax.training.step_agreement import agree, memory_metrics
from sr1_jax.training.step_log import StepLog, rollout_metrics
from sr1_jax.training.stopwatch import Interval, Stopwatch

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


def test_lengths_rewards_and_scores_by_part(make_trajectory):
    """Beside NumPy's own percentiles; six trajectories of two sources."""
    lengths = [3, 9, 4, 8, 5, 7]
    trajectories = [
        make_trajectory(
            question_id=f"q:{number}",
            ids=np.zeros(2 + length, np.int32),
            mask=np.zeros(2 + length, np.int32),
            logp=np.zeros(2 + length, np.float32),
            prompt_length=2,
            answer="x" if number < 3 else "wrong",
            golden_answers=("x",),
            searches=["a"] * (number % 3),
            reward=float(number),
        )
        for number, length in enumerate(lengths)
    ]
    questions = [Question(f"{'nq' if i < 4 else 'hop'}:train:{i}", "?", ("x",)) for i in range(6)]
    groups = [[trajectory] for trajectory in trajectories]
    metrics = rollout_metrics(Sampled(questions, groups, list(range(6)), {}))
    assert [metrics[f"response_tokens_p{p}"] for p in (5, 50, 95)] == [3.25, 6.0, 8.75]
    assert (metrics["reward_min"], metrics["reward_max"]) == (0.0, 5.0)
    assert metrics["reward_std"] == pytest.approx(math.sqrt(35 / 12))
    assert [metrics[f"em/searches_{n}"] for n in (0, 1, 2)] == [0.5, 0.5, 0.5]
    sources = {question.source for question in questions}
    assert sources == {"nq", "hop"}
    assert (metrics["em/nq"], metrics["em/hop"]) == (0.75, 0.0)


def test_where_nothing_trains(sampled, make_trajectory):
    groups = [[make_trajectory(trains=False, reward=1.0, rewards={"em": 1.0})]]
    metrics = rollout_metrics(sampled._replace(groups=groups, questions=sampled.questions[:1]))
    assert metrics["trained_reward"] == 0.0 and "groups/degenerate" not in metrics


def test_a_row_that_is_not_finite(tmp_path, sampled, small_tokenizer):
    learned = {"policy/loss": math.nan, "critic/loss": 0.5, "policy/gradient_norm": math.inf}
    with StepLog(default_config(), tmp_path, small_tokenizer, start=0) as log:
        arrays = {"values": np.ones((1, 5), np.float32)}
        log.write(3, METRICS | learned, sampled.trained, [1], arrays)
    (row,) = read_metrics(tmp_path)
    assert row["step"] == 3 and row["critic/loss"] == 0.5
    assert row["policy/loss"] is None and row["policy/gradient_norm"] is None
    (kept,) = read_trajectories(tmp_path / "trajectories" / "step-000003.jsonl")
    assert kept["sample"] == 1 and kept["values"].tolist() == [1.0, 1.0]


def test_rows_of_steps_undone_are_kept_apart(tmp_path, sampled, small_tokenizer):
    with StepLog(default_config(), tmp_path, small_tokenizer, start=0) as log:
        for step, reward in ((1, 0.1), (2, 0.2), (3, 0.3)):
            log.write(step, METRICS | {"reward": reward}, sampled.trained, [], {})
        log.go_back(1, 1)
        log.write(2, METRICS | {"reward": 0.4}, sampled.trained, [], {})
    assert [(row["step"], row["reward"]) for row in read_metrics(tmp_path)] == [(1, 0.1), (2, 0.4)]
    undone = (tmp_path / "undone" / "1.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in undone] == [0.2, 0.3]


def test_one_process_agrees_with_itself():
    agreed = agree({"loss": 1.0}, told_to_end=True)
    assert agreed.metrics == {"loss": 1.0} and agreed.told_to_end is True
    assert 0.01 < agreed.memory["memory/peak_gib"] < 1000


def test_memory_by_kind(mesh):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    told = {"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31, "bytes_limit": 2**32}
    fuller = told | {"bytes_in_use": 3 * 2**29}
    found = memory_metrics([Device(told), Device(fuller), Device(None)])
    kinds = ("device", "device_peak", "device_limit")
    assert [found[f"memory/{kind}_gib"] for kind in kinds] == [1.5, 2.0, 4.0]
    before = memory_metrics([Device(None)])
    assert "memory/device_gib" not in before  # as of a CPU
    where = named(mesh)
    there = jax.device_put(np.zeros((4, 2**18), np.float32), where)
    hosts = jax.device_put(there, where.with_memory_kind("pinned_host"))
    after = memory_metrics([])
    for kind in ("device", "pinned_host"):
        key = f"memory/arrays_{kind}_gib"
        more = after[key] - before.get(key, 0.0)
        assert more == pytest.approx(len(mesh.devices.flat) * 2**22 / 2**30, abs=1e-5)
    del there, hosts


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


def test_the_first_process_tells_when_to_save(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sr1_jax.training.stopwatch.time.monotonic", lambda: now[0])
    since, never = Interval(60.0), Interval(0.0)
    assert not agree({}, told_to_end=False, overdue=since.is_over()).overdue
    now[0] = 60.0
    assert agree({}, told_to_end=False, overdue=since.is_over()).overdue and not never.is_over()
    since.restart()
    assert not since.is_over()
