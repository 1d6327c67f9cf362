"""The reward of a run: named, weighted terms, added up for each trajectory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sr1_jax.import_path import blamed, is_import_path, load
from sr1_jax.rewards.terms import TERMS, Term

# The fields of a trajectory that are filled in here.
EARNED = ("rewards", "segment_rewards", "reward", "trains")


class _Weighted(NamedTuple):
    name: str
    term: Term
    weight: float


class Reward:
    """What episodes earn, and which of them train.

    Args:
        config: the settings of `rewards.settings.REWARD`.
        budget: tokens a trajectory may have, prompt included.

    Raises:
        ValueError: reward.terms is malformed, or names a term that there is not.
    """

    def __init__(self, config: Any, budget: int):
        self._leaves_out_truncated = config.truncated == "mask"
        self._terms = [
            _Weighted(name, _make_term(name, config, budget), weight)
            for name, weight in _pairs(config.terms)
        ]

    def score(self, trajectories: Sequence[Any], questions: Sequence[Any]) -> list[Any]:
        """The trajectories with `rewards`, `segment_rewards`, `reward` and `trains` filled in.

        A value for the whole episode counts at its last segment.

        Args:
            trajectories: dataclasses with these fields; what terms look at is theirs to say.
            questions: of each of them.

        Raises:
            ValueError: a term returned something other than a finite number, or one a segment.
        """
        segment_rewards = [np.zeros(t.segments, np.float64) for t in trajectories]
        values: list[dict[str, float]] = [{} for _ in trajectories]
        for name, term, weight in self._terms:
            for index, value in enumerate(_evaluate(name, term, trajectories, questions)):
                by_segment = _by_segment(name, value, trajectories[index])
                segment_rewards[index] += weight * by_segment
                values[index][name] = float(by_segment.sum())
        return [
            dataclasses.replace(
                trajectory,
                rewards=values[index],
                segment_rewards=segment_rewards[index].astype(np.float32),
                # As the learner sees it: rewards that are equal there are equal everywhere.
                reward=float(np.float32(segment_rewards[index].sum())),
                trains=not (self._leaves_out_truncated and trajectory.status == "truncated"),
            )
            for index, trajectory in enumerate(trajectories)
        ]


def check_terms(config: Any) -> None:
    """Refuses terms that cannot be made, and settings that no term reads.

    Raises:
        ValueError: see `Reward`.
    """
    names = {weighted.name for weighted in Reward(config, budget=1)._terms}
    with_format = bool(names & {"em_format", "f1_format", "substring_format"})
    if with_format != (config.format_weight > 0):
        raise ValueError(
            f"reward.format_weight={config.format_weight} is the share of the format in the terms "
            "em_format, f1_format and substring_format of reward.terms, and in no others: set both "
            "or neither."
        )
    if ("overlong" in names) != (config.overlong_buffer > 0):
        raise ValueError(
            f"reward.overlong_buffer={config.overlong_buffer} is where the term overlong of "
            "reward.terms begins to cost: set both or neither."
        )


def _pairs(terms: Any) -> list[tuple[str, float]]:
    form = "reward.terms must be (name or module:function, weight) pairs"
    if not isinstance(terms, (tuple, list)) or not terms:
        raise ValueError(f"{form}, at least one, not {terms!r}.")
    seen = set()
    for pair in terms:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{form}, not {pair!r}.")
        name, weight = pair
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not isinstance(name, str) or not number or not math.isfinite(weight):
            raise ValueError(f"{form}, not {tuple(pair)!r}.")
        if name in seen:
            raise ValueError(f"reward.terms names {name!r} twice; add up the weights.")
        seen.add(name)
    return [(name, float(weight)) for name, weight in terms]


def _make_term(name: str, config: Any, budget: int) -> Term:
    if name in TERMS:
        return TERMS[name](config, budget)
    if is_import_path(name):
        return load(name, "reward.terms")
    raise ValueError(
        f"reward.terms has {name!r}; a term is one of {', '.join(TERMS)}, or module:function."
    )


def _evaluate(
    name: str, term: Term, trajectories: Sequence[Any], questions: Sequence[Any]
) -> list[Any]:
    if not getattr(term, "batched", False):
        values = []
        for trajectory, question in zip(trajectories, questions):
            with blamed(f"The reward term {name!r}, question {trajectory.question_id}"):
                values.append(term(trajectory, question))
        return values
    with blamed(f"The reward term {name!r}"):
        values = list(term(list(trajectories), list(questions))) if trajectories else []
    if len(values) != len(trajectories):
        raise ValueError(
            f"The reward term {name!r} returned {len(values)} values for {len(trajectories)} "
            "trajectories."
        )
    return values


def _by_segment(name: str, value: Any, trajectory: Any) -> np.ndarray:
    """A term's value as one number a segment."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if numbers.shape not in ((), (trajectory.segments,)) or not np.isfinite(numbers).all():
        raise ValueError(
            f"The reward term {name!r} returned {value!r} for question {trajectory.question_id}: "
            f"it must be a finite number, or one for each of the {trajectory.segments} segments."
        )
    if numbers.ndim:
        return numbers
    spread = np.zeros(trajectory.segments)
    spread[-1] = numbers
    return spread
