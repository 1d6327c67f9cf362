"""Rollouts of a step: which questions can be asked, and the trajectories of those that are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from flax import nnx

from sr1_jax.data.prepared import Subset, index_of
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionSource, Stream
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.remembered import remembered
from sr1_jax.retrieval.index_folder import MEMORY_FILE
from sr1_jax.rollout import Engine
from sr1_jax.rollout.stats import as_metrics, sum_stats
from sr1_jax.training.dynamic_sampling import Sampled, sample_groups
from sr1_jax.training.training_questions import solve_rates


class Memory(NamedTuple):
    """Where it is remembered which prompts are too long.

    Attributes:
        file: see `remembered`.
        key: all that it depends on: questions, prompt, tokenizer and limits; JSON-able.
    """

    file: Path
    key: Mapping[str, Any]


def prompt_memory(
    config: ml_collections.ConfigDict,
    contents: Mapping[str, str],
    tokenizer: Tokenizer,
    workdir: Path,
) -> Memory:
    """Where a run remembers which of its prompts are too long.

    Args:
        config: of the run.
        contents: fingerprints of what the run starts from, see `resume.run_facts`.
        tokenizer: of the policy.
        workdir: of the run.
    """
    limits = ("max_context_tokens", "max_observation_tokens")
    key = {name: value for name, value in contents.items() if name in ("data.questions", "prompt")}
    key |= {"tokenizer": tokenizer.fingerprint} | {name: config.rollout[name] for name in limits}
    return Memory(workdir / "data" / MEMORY_FILE, key)


def questions_that_fit(
    source: QuestionSource, engine: Engine, *, skip: bool, memory: Memory | None = None
) -> QuestionSource:
    """Training questions whose prompts fit, before a batch is drawn, which has to be full.

    Args:
        source: of training questions.
        engine: of the run.
        skip: leave out those that do not fit.
        memory: of which those are; None: all are looked at.

    Raises:
        ValueError: none fits; or one does not, and `skip` is False.
    """
    # Most questions are known to fit by their length, and are not read.
    long = np.flatnonzero(index_of(source).bytes_Q > engine.sure_to_fit_bytes())

    def find() -> list[int]:
        return [int(number) for number in long if not engine.fits(source[int(number)])]

    if not long.size:
        return source
    misfits = find() if memory is None else remembered(memory.file, "prompts", memory.key, find)
    if not misfits:
        return source
    if not skip:
        raise ValueError(
            f"Question {source[misfits[0]].id}: its prompt leaves no room for an answer; so do "
            f"those of {len(misfits)} of {len(source)} training questions. Raise "
            'rollout.max_context_tokens, shorten them, or set rollout.long_prompts="skip".'
        )
    print(f"{len(misfits)} of {len(source)} training questions are too long.", flush=True)
    if len(misfits) == len(source):
        raise ValueError("No training question fits; raise rollout.max_context_tokens.")
    return Subset(source, np.delete(np.arange(len(source)), misfits))


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
