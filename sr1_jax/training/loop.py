"""The loop of reinforcement learning: rollout, reward, update, evaluate, save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.evaluation.methods import make_engine
from sr1_jax.evaluation.trajectory_log import sampled_rows
from sr1_jax.rl.batch import make_batch
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import masks_observations
from sr1_jax.training.base import Policy
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder
from sr1_jax.training.development import Development
from sr1_jax.training.resume import run_facts, take_up
from sr1_jax.training.rollouts import questions_that_fit, roll_out
from sr1_jax.training.step_agreement import agree
from sr1_jax.training.step_log import StepLog, check_finite, rollout_metrics
from sr1_jax.training.stopwatch import Stopwatch
from sr1_jax.training.task import Task
from sr1_jax.training.termination import Termination
from sr1_jax.training.training_questions import open_stream


def reinforce(
    config: ml_collections.ConfigDict,
    workdir: Path,
    task: Task,
    learner: Learner,
    policy: Policy,
    mesh: Mesh,
    development: Development,
    contents: Mapping[str, str],
) -> nnx.State:
    """Trains for config.steps steps, from the newest checkpoint if there is one.

    Args:
        config: of the run.
        workdir: for metrics, trajectories and, by default, checkpoints.
        task: questions and retriever.
        learner: of `make_learner`.
        policy: its shape and its tokenizer.
        mesh: of the learner.
        development: asked every config.evaluation.every steps.
        contents: fingerprints of all that the run starts from.

    Returns:
        The trained parameters.

    Raises:
        ValueError: settings that cannot work, or a checkpoint of another run.
        FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
        InterruptedError: SIGTERM came; the state after the step that was under way is saved.
    """
    tokenizer, facts = policy.tokenizer, run_facts(config, contents)
    engine = make_engine(
        policy.shape, tokenizer, task.retriever, config, config.method, trains=True, mesh=mesh
    )
    questions = questions_that_fit(task.train, engine, skip=config.rollout.long_prompts == "skip")
    with RunCheckpoints(checkpoint_folder(config, workdir), config.checkpoint.keep) as checkpoints:
        state, start, taken = take_up(checkpoints, learner, facts)
        stream = open_stream(config, questions, taken)
        log = StepLog(workdir, tokenizer, steps=config.steps, start=start)
        with log, Termination() as termination:
            for step in range(start + 1, config.steps + 1):
                watch = Stopwatch()
                with watch("step"):
                    with watch("rollout"):  # each episode has its reward when it ends
                        sampled, stats = roll_out(
                            engine, stream, config, step, learner.policy_params(state)
                        )
                        batch = make_batch(
                            sampled.trained,
                            length=config.learner.length_buckets[-1],
                            pad_id=tokenizer.pad_id,
                            mask_observations=masks_observations(config.learner),
                        )
                    with watch("update"):  # advantages first
                        result = learner.step(state, batch, seed=config.seed, step=step)
                        state = result.state

                agreed = agree(result.metrics, termination.noted)
                metrics = rollout_metrics(sampled) | stats | agreed.metrics
                metrics["memory/peak_gib"] = agreed.peak_memory_gib
                if step < config.steps and _due(config.evaluation.every, step):
                    with watch("evaluation"):
                        scores = development.while_training(learner.policy_params(state))
                    metrics |= {f"dev/{key}": value for key, value in scores.items()}
                rows = sampled_rows(sampled.trained, config.log.groups, step)
                arrays = learner.rows_of(result.prepared, rows)
                log.write(step, metrics | watch.metrics(), sampled.trained, rows, arrays)
                check_finite(step, agreed.metrics)

                last = agreed.told_to_end or step == config.steps
                if last or _due(config.checkpoint.every, step):
                    checkpoints.save(step, state, facts | stream.state())
                if agreed.told_to_end:
                    raise InterruptedError(
                        f"Told to end (SIGTERM): saved after step {step}. Start again to go on."
                    )
    return learner.policy_params(state)


def _due(every: int, step: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0
