"""Rollouts of a step: which questions can be asked, and the trajectories of those that are."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
from flax import nnx

from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionSource, QuestionStream
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.rollout import Engine
from sr1_jax.rollout.engine import as_metrics, sum_stats
from sr1_jax.training.dynamic_sampling import Sampled, sample_groups


def questions_that_fit(source: QuestionSource, engine: Engine, *, skip: bool) -> QuestionSource:
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


def roll_out(
    engine: Engine,
    stream: QuestionStream,
    config: ml_collections.ConfigDict,
    step: int,
    params: nnx.State,
) -> tuple[Sampled, dict[str, float]]:
    """The groups of a step, config.samples trajectories each, and metrics of the engine.

    Args:
        engine: of the run.
        stream: of training questions.
        config: of the run.
        step: of training; decides with config.seed what is sampled.
        params: of the policy.
    """
    stats: list[dict[str, float]] = []

    def groups_of(questions: Sequence[Question]) -> list[list[Trajectory]]:
        size = config.samples
        trajectories = engine.run(questions, config.seed, size, step=step, params=params)
        stats.append(engine.stats)
        return [trajectories[start : start + size] for start in range(0, len(trajectories), size)]

    sampled = sample_groups(
        groups_of,
        stream,
        count=config.questions,
        extra_rounds=config.dynamic_sampling_rounds,
    )
    return sampled, as_metrics(sum_stats(stats))
