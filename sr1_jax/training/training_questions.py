"""Training questions as the settings want them: found, chosen, drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from sr1_jax.data.curriculum import Curriculum, CurriculumStream
from sr1_jax.data.questions import QuestionFile
from sr1_jax.data.selection import check_pairs, select, selection_sha
from sr1_jax.data.sets import question_files
from sr1_jax.data.stream import QuestionSource, QuestionStream, Stream
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.paths import local_paths
from sr1_jax.rewards import exact_match


def files_of(config: ml_collections.ConfigDict, key: str, *, training: bool) -> list[QuestionFile]:
    """The files that a setting names.

    Args:
        config: of the run.
        key: "questions" or "dev", of the section data.
        training: a set without a split stands for its training split.

    Raises:
        FileNotFoundError, ValueError: as `sets.question_files`; the message names the key.
    """
    specs = local_paths(config.data[key], f"data.{key}")
    found: list[QuestionFile] = []
    for spec in specs:
        try:
            found += question_files(spec, config.data.folder, training=training)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"data.{key}: {error}") from error
    return found


def chosen(
    config: ml_collections.ConfigDict, source: QuestionSource, fingerprint: str
) -> tuple[QuestionSource, str]:
    """The questions that data.filter and data.limit leave, and a fingerprint of them.

    Raises:
        ValueError: none is left, or a setting names a set that is not there.
    """
    left = select(source, filters=config.data.filter, limits=limits_of(config), seed=config.seed)
    told = selection_sha(left)
    if told:
        fingerprint = hashlib.sha256(fingerprint.encode() + told).hexdigest()[:24]
    return left, fingerprint


def open_stream(
    config: ml_collections.ConfigDict, source: QuestionSource, state: Mapping[str, Any]
) -> Stream:
    """The stream of training questions.

    Args:
        config: of the run.
        source: the questions.
        state: what `Stream.state` said when the run was saved; {} for a new run.

    Raises:
        ValueError: no questions, weights that do not fit their sets, or a state of others.
    """
    settings, weights = config.data.curriculum, mixture_of(config)
    if not settings.enabled:
        position = state.get("position", 0)
        return QuestionStream(source, seed=config.seed, position=position, weights=weights)
    curriculum = Curriculum(
        target=settings.target,
        width=settings.width,
        floor=settings.floor,
        momentum=settings.momentum,
        new=settings.new,
    )
    return CurriculumStream(
        source, seed=config.seed, curriculum=curriculum, weights=weights, state=state
    )


def solve_rates(groups: Sequence[Sequence[Trajectory]]) -> list[float]:
    """Of each group the share of samples whose answer is right (exact match)."""
    return [
        sum(exact_match(t.answer, t.golden_answers) for t in group) / len(group) for group in groups
    ]


def mixture_of(config: ml_collections.ConfigDict) -> dict[str, float]:
    """data.weights by set.

    Raises:
        ValueError: naming what is wrong.
    """
    return check_pairs(config.data.weights, "data.weights", _is_weight, "a weight of 0 or more")


def limits_of(config: ml_collections.ConfigDict) -> dict[str, int]:
    """data.limit by set; errors as `mixture_of`."""
    return check_pairs(config.data.limit, "data.limit", _is_limit, "a whole number of at least 1")


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < float("inf")


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and value >= 1
