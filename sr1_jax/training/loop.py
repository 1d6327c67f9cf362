"""The loop of reinforcement learning: rollout, reward, update, evaluate, save."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from sr1_jax.agreement import gather
from sr1_jax.cluster import is_first
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionSource, QuestionStream
from sr1_jax.evaluation.evaluator import Evaluator
from sr1_jax.evaluation.metrics import Live, MetricsWriter, NoWriter
from sr1_jax.evaluation.scores import hops_of, score
from sr1_jax.evaluation.trajectory_log import write_trajectories
from sr1_jax.models import Decoder, Tokenizer
from sr1_jax.rl.batch import Batch, make_batch, outcome
from sr1_jax.rl.learner import Learner
from sr1_jax.rollout import Engine, Trajectory
from sr1_jax.rollout.engine import as_metrics, sum_stats
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder
from sr1_jax.training.dynamic_sampling import Sampled, sample_groups
from sr1_jax.training.policies import models_to_train
from sr1_jax.training.same_settings import as_json_values, check_same_settings
from sr1_jax.training.task import Task
from sr1_jax.training.termination import Termination

# Settings that may differ when a run is taken up again; all others must be the same. On another
# mesh, or on other processes, it is the same run but for rounding.
_FREE_ON_RESUME = (
    "steps", "checkpoint", "evaluation", "mesh",
    # What a run may have stopped for: a retriever that failed, a loss that was not finite.
    "rollout.retriever_threads", "rollout.retriever_batch", "rollout.retriever_timeout_seconds",
    "rollout.retriever_attempts", "rollout.retriever_backoff_seconds", "rollout.retriever_failure",
    "rollout.profile", "learner.learning_rate", "learner.critic_learning_rate", "learner.clip",
    "learner.clip_high", "learner.value_clip", "learner.gradient_clip",
)  # fmt: skip


def make_learner(
    config: ml_collections.ConfigDict, policy: Decoder, tokenizer: Tokenizer, mesh: Mesh
) -> Learner:
    """The learner of a run. But for the frozen base of adapters it has copies of its own of what
    it needs of `policy`, which may be freed."""
    return Learner(
        *models_to_train(config, policy, tokenizer, mesh),
        config.learner,
        mesh,
        trajectories=config.questions * config.samples,
        temperature=config.rollout.temperature,
    )


def reinforce(
    config: ml_collections.ConfigDict,
    workdir: Path,
    task: Task,
    learner: Learner,
    policy: Decoder,
    tokenizer: Tokenizer,
    mesh: Mesh,
    evaluator: Evaluator,
) -> Any:
    """Trains for config.steps steps, from the newest checkpoint if there is one.

    Args:
        config: of the run.
        workdir: for metrics, trajectories and, by default, checkpoints.
        task: questions and retriever.
        learner: of `make_learner`.
        policy: its shape suffices, see `abstract.without_arrays`.
        tokenizer: of the policy.
        mesh: of the learner.
        evaluator: called every config.evaluation.every steps.

    Returns:
        The trained parameters.

    Raises:
        ValueError: settings that cannot work, or that differ from those of the checkpoint.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
        InterruptedError: SIGTERM came; the state after the step that was under way is saved.
    """
    engine = make_engine(policy, tokenizer, task.retriever, config, config.method, mesh=mesh)
    checkpoints = RunCheckpoints(checkpoint_folder(config, workdir), keep=config.checkpoint.keep)
    state, start = learner.initial_state, checkpoints.latest_step or 0
    facts = {"config": _fixed_settings(config), "position": 0}
    if start:
        saved = checkpoints.facts(start)
        check_same_settings(_without_free(saved["config"]), facts["config"])
        facts["position"] = saved["position"]
        state = checkpoints.restore(start, state)
        print(f"Taken up again after step {start}.", flush=True)
    source = _those_that_fit(task.train, engine, skip=config.rollout.long_prompts == "skip")
    stream = QuestionStream(source, seed=config.seed, position=facts["position"])
    judge = functools.partial(outcome, **_judged(config))
    writer = MetricsWriter(workdir, start_step=start) if is_first() else NoWriter()
    live = Live("training", config.steps, start=start)
    dev = next(iter(task.dev.values()), [])[: config.evaluation.questions]
    closing = contextlib.closing
    with checkpoints, closing(writer), closing(live), Termination() as termination:
        for step in range(start + 1, config.steps + 1):
            began = time.perf_counter()
            roll_out = _Rollouts(engine, config, step, learner.policy_params(state))
            sampled = sample_groups(
                roll_out,
                stream,
                judge,
                count=config.questions,
                extra_rounds=config.dynamic_sampling_rounds,
            )
            rolled_out = as_metrics(sum_stats(roll_out.stats))
            del roll_out  # and with it a merged policy, for which an update has no room
            batch = make_batch(
                sampled.trained,
                length=config.learner.length_buckets[-1],
                pad_id=tokenizer.pad_id,
                mask_observations=config.learner.mask_observations,
                **_judged(config),
            )
            updated = time.perf_counter()
            state, learned = learner.step(state, batch, seed=config.seed, step=step)
            now = time.perf_counter()
            learned, memory_gib, ending = _agreed(learned, termination.noted)
            metrics = rollout_metrics(sampled, batch) | rolled_out | learned
            metrics |= {
                "seconds/rollout": updated - began,
                "seconds/update": now - updated,
                "seconds/step": now - began,
                "memory/peak_gib": memory_gib,
            }
            _stop_if_not_finite(learned, step)
            every = config.evaluation.every
            if dev and every and step % every == 0 and step < config.steps:
                scores, _ = evaluator.run(learner.policy_params(state), dev)
                metrics |= {f"dev/{key}": value for key, value in scores.items()}
                metrics["seconds/evaluation"] = time.perf_counter() - now
            writer.write(step, metrics)
            if is_first():
                write_trajectories(workdir / "trajectories", step, sampled.trained, tokenizer)
            live.update(
                step,
                reward=metrics["reward"],
                EM=metrics["em"],
                searches=metrics["searches"],
                entropy=metrics["policy/entropy"],
            )
            last = ending or step == config.steps
            if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                checkpoints.save(step, state, facts | {"position": stream.position})
            if ending:
                raise InterruptedError(
                    f"Told to end (SIGTERM): saved after step {step}. Start again to go on."
                )
    return learner.policy_params(state)


def _those_that_fit(source: QuestionSource, engine: Engine, *, skip: bool) -> QuestionSource:
    """Training questions whose prompts fit, before a batch is drawn, which has to be full.

    Raises:
        ValueError: none fits; or one does not, and `skip` is False.
    """
    fits = [engine.fits(source[index]) for index in range(len(source))]
    if all(fits):
        return source
    if not skip:
        raise ValueError(
            f"Question {source[fits.index(False)].id}: its prompt leaves no room for an answer; so "
            f"do those of {fits.count(False)} of {len(source)} training questions. Raise "
            'rollout.max_context_tokens, shorten them, or set rollout.long_prompts="skip".'
        )
    print(f"{fits.count(False)} of {len(source)} training questions are too long.", flush=True)
    if not any(fits):
        raise ValueError("No training question fits; raise rollout.max_context_tokens.")
    return [source[index] for index, fit in enumerate(fits) if fit]


class _Rollouts:
    """Rollouts of one step: questions in, the trajectories of each out; statistics are kept."""

    def __init__(self, engine: Engine, config: ml_collections.ConfigDict, step: int, params: Any):
        self._engine, self._config, self._step, self._params = engine, config, step, params
        self.stats: list[dict[str, float]] = []

    def __call__(self, questions: Sequence[Question]) -> list[list[Trajectory]]:
        seed, samples = self._config.seed, self._config.samples
        trajectories = self._engine.run(
            questions, seed, samples, step=self._step, params=self._params
        )
        self.stats.append(self._engine.stats)
        return [
            trajectories[start : start + samples] for start in range(0, len(trajectories), samples)
        ]


def _judged(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Settings of `batch.outcome`."""
    learner = config.learner
    return {
        "truncated": learner.truncated,
        "truncation_penalty": learner.truncation_penalty,
        "overlong_buffer": learner.overlong_buffer,
        "overlong_penalty": learner.overlong_penalty,
        "budget": config.rollout.max_context_tokens,
    }


def rollout_metrics(sampled: Sampled, batch: Batch) -> dict[str, float]:
    """Means over all trajectories of a step, and over the rewards of those that train."""
    every = [trajectory for group in sampled.groups for trajectory in group]
    hops = hops_of([q for q, group in zip(sampled.questions, sampled.groups) for _ in group])
    trains_B = batch.mask_BT.any(axis=1)
    means = score(every, hops) | {
        "reward": float(np.mean([t.reward for t in every])),
        "trained_reward": float(batch.reward_B[trains_B].mean()) if trains_B.any() else 0.0,
        "context_tokens": float(np.mean([len(t.ids) for t in every])),
    }
    return means | (sampled.metrics if len(sampled.groups[0]) > 1 else {})


def _agreed(learned: dict[str, float], noted: bool) -> tuple[dict[str, float], float, bool]:
    """The first process's metrics, the largest memory, and whether any was told to end: equal in
    all processes, so that all go on or none does."""
    said = gather((learned, peak_memory_gib(), noted))
    return said[0][0], max(memory for _, memory, _ in said), any(noted for *_, noted in said)


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _stop_if_not_finite(learned: dict[str, float], step: int) -> None:
    bad = [key for key, value in learned.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"Step {step}: {', '.join(bad)} not finite. Nothing was saved after the last "
            "checkpoint; lower the learning rate or the clip range and start again from there."
        )


def _fixed_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return _without_free(as_json_values(config.to_dict()))


def _without_free(settings: dict[str, Any]) -> dict[str, Any]:
    """All but those that may differ."""
    kept = copy.deepcopy(settings)
    for key in _FREE_ON_RESUME:
        *sections, name = key.split(".")
        node = kept
        for section in sections:
            node = node.get(section, {})
        node.pop(name, None)
    return kept
