"""The loop of reinforcement learning: rollout, reward, update, evaluate, save."""

from __future__ import annotations

import functools
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
from sr1_jax.storage.workdir import check_ours, push_now
from sr1_jax.training.base import Policy
from sr1_jax.training.checkpoints import RunCheckpoints, checkpoint_folder
from sr1_jax.training.development import Development
from sr1_jax.training.goodput import Goodput
from sr1_jax.training.guards import Guards
from sr1_jax.training.profiling import ProfiledSteps, Profiler
from sr1_jax.training.resume import run_facts, take_up
from sr1_jax.training.rollouts import prompt_memory, questions_that_fit, roll_out
from sr1_jax.training.step_agreement import Agreed, agree
from sr1_jax.training.step_log import StepLog, rollout_metrics
from sr1_jax.training.stopwatch import Interval, Stopwatch
from sr1_jax.training.task import Task
from sr1_jax.training.termination import Termination
from sr1_jax.training.training_questions import open_stream
from sr1_jax.training.utilisation import Utilisation
from sr1_jax.training.watchdog import Watchdog


def reinforce(
    config: ml_collections.ConfigDict,
    workdir: Path,
    task: Task,
    learner: Learner,
    policy: Policy,
    mesh: Mesh,
    development: Development,
    contents: Mapping[str, str],
    profile: ProfiledSteps | None = None,
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
        profile: steps to trace into the workdir.

    Returns:
        The trained parameters.

    Raises:
        ValueError: settings that cannot work, or a checkpoint of another run.
        Diverged: training failed more often than config.guards allows, or collapsed; the last
            good checkpoint stays.
        InterruptedError: SIGTERM came; the state after the step that was under way is saved.
    """
    tokenizer, facts = policy.tokenizer, run_facts(config, contents)
    engine = make_engine(
        policy.shape, tokenizer, task.retriever, config, config.method, trains=True, mesh=mesh
    )
    questions = questions_that_fit(
        task.train, engine, skip=config.rollout.long_prompts == "skip",
        memory=prompt_memory(config, contents, tokenizer, workdir),
    )  # fmt: skip
    folder, keep = checkpoint_folder(config, workdir), config.checkpoint.keep
    ours, push = functools.partial(check_ours, workdir), functools.partial(push_now, workdir)
    watchdog = Watchdog(config.watchdog.seconds, workdir)
    utilisation = Utilisation(config, policy.shape.config, mesh)
    profiler = Profiler(workdir / "profile", profile)
    with (
        RunCheckpoints(folder, keep, before_save=ours, before_commit=push) as checkpoints,
        watchdog,
        Goodput(watchdog.finished) as goodput,
    ):
        with goodput("restore"):
            state, step, taken, guarded = take_up(checkpoints, learner, facts)
        stream = open_stream(config, questions, taken)
        guards = Guards(config.guards, config.seed, guarded)
        since_saved = Interval(60 * config.checkpoint.minutes)
        log, due = StepLog(config, workdir, tokenizer, start=step), False
        with log, profiler, Termination() as termination:
            while step < config.steps:
                step += 1
                profiler.at(step)
                watch = Stopwatch(goodput)
                with watch("step"):
                    with watch("rollout"):  # each episode has its reward when it ends
                        sampled, stats = roll_out(
                            engine, stream, config, step, learner.policy_params(state),
                            seed=guards.seed,
                        )  # fmt: skip
                        batch = make_batch(
                            sampled.trained,
                            length=config.learner.length_buckets[-1],
                            pad_id=tokenizer.pad_id,
                            mask_observations=masks_observations(config.learner),
                        )
                    with watch("update"):  # advantages first
                        result = learner.step(
                            state, batch, seed=guards.seed, step=step, rate_scale=guards.rate_scale
                        )
                        state = result.state

                checkpoints.check()
                agreed = agree(result.metrics, termination.noted, since_saved.is_over())
                metrics = rollout_metrics(sampled) | stats | agreed.metrics | agreed.memory
                verdict, scores = guards.judge(step, metrics), {}
                if step < config.steps and _due(config.evaluation.every, step):
                    with watch("evaluation"):
                        scores = development.while_training(learner.policy_params(state))
                    metrics |= {f"dev/{key}": value for key, value in scores.items()}
                rows = sampled_rows(sampled.trained, config.log.groups, step)
                arrays = learner.rows_of(result.prepared, rows)
                metrics |= verdict.metrics | watch.metrics() | goodput.metrics(stats)
                metrics |= utilisation.metrics(sampled, stats, watch.metrics())
                log.write(step, metrics, sampled.trained, rows, arrays)

                if verdict.undoes:
                    _check_goes_on(agreed, "the run goes on from its last checkpoint")
                    del state, result  # what is restored takes their place
                    with goodput("checkpoint"):
                        state, step = guards.go_back(step, verdict, checkpoints, learner)
                    log.go_back(step, guards.roll_backs)
                    continue
                score = scores.get(config.checkpoint.best)
                due |= _due(config.checkpoint.every, step) or checkpoints.is_best(score)
                due |= agreed.overdue
                if agreed.told_to_end or step == config.steps or (due and verdict.good):
                    told = facts | stream.state() | guards.facts()
                    with goodput("checkpoint"):
                        checkpoints.save(step, state, told, score=score, good=verdict.good)
                    due = False
                    since_saved.restart()
                _check_goes_on(agreed, f"saved after step {step}")
    return learner.policy_params(state)


def _check_goes_on(agreed: Agreed, left: str) -> None:
    """Raises InterruptedError if the run was told to end, saying what it leaves."""
    if agreed.told_to_end:
        raise InterruptedError(f"Told to end (SIGTERM): {left}. Start again to go on.")


def _due(every: int, step: int) -> bool:
    """Whether something that is done every so many steps is done after this one; 0: never."""
    return every > 0 and step % every == 0
