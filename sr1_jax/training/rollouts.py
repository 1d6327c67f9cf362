"""Rollouts of a step: which questions can be asked, and the trajectories of those that are."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
import numpy as np
from flax import nnx

from sr1_jax.data.prepared import Subset, index_of
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionSource, Stream
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.rollout import Engine
from sr1_jax.rollout.stats import as_metrics, sum_stats
from sr1_jax.training.dynamic_sampling import Sampled, sample_groups
from sr1_jax.training.training_questions import solve_rates


def questions_that_fit(source: QuestionSource, engine: Engine, *, skip: bool) -> QuestionSource:
    """Training questions whose prompts fit, before a batch is drawn, which has to be full.

    Raises:
        ValueError: none fits; or one does not, and `skip` is False.
    """
    # Most questions are known to fit by their length, and are not read.
    long = np.flatnonzero(index_of(source).bytes_Q > engine.sure_to_fit_bytes())
    fits_Q = np.ones(len(source), bool)
    fits_Q[long] = [engine.fits(source[int(number)]) for number in long]
    if fits_Q.all():
        return source
    misfits = int((~fits_Q).sum())
    if not skip:
        raise ValueError(
            f"Question {source[int(np.argmin(fits_Q))].id}: its prompt leaves no room for an "
            f"answer; so do those of {misfits} of {len(source)} training questions. Raise "
            'rollout.max_context_tokens, shorten them, or set rollout.long_prompts="skip".'
        )
    print(f"{misfits} of {len(source)} training questions are too long.", flush=True)
    if not fits_Q.any():
        raise ValueError("No training question fits; raise rollout.max_context_tokens.")
    return Subset(source, np.flatnonzero(fits_Q))


def roll_out(
    engine: Engine,
    stream: Stream,
    config: ml_collections.ConfigDict,
    step: int,
    params: nnx.State,
    *,
    seed: int,
) -> tuple[Sampled, dict[str, float]]:
    """The groups of a step, config.samples trajectories each, and metrics of engine and stream.

    The stream is told what was solved: all trajectories, which every process has alike.

    Args:
        engine: of the run.
        stream: of training questions.
        config: of the run.
        step: of training.
        params: of the policy.
        seed: decides with the step what is sampled.
    """
    stats: list[dict[str, float]] = []

    def groups_of(questions: Sequence[Question]) -> list[list[Trajectory]]:
        size = config.samples
        trajectories = engine.run(questions, seed, size, step=step, params=params)
        stats.append(engine.stats)
        return [trajectories[start : start + size] for start in range(0, len(trajectories), size)]

    sampled = sample_groups(
        groups_of,
        stream,
        count=config.questions,
        extra_rounds=config.dynamic_sampling_rounds,
    )
    stream.observe(sampled.questions, solve_rates(sampled.groups))
    return sampled, as_metrics(sum_stats(stats)) | stream.metrics()
