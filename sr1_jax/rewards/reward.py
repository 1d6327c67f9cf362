"""The reward of a run: named, weighted terms, added up for each trajectory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sr1_jax.http_exchange import read_key
from sr1_jax.import_path import blamed, is_import_path, load
from sr1_jax.rewards.format import check_weights
from sr1_jax.rewards.judge import KEY_OWNER
from sr1_jax.rewards.terms import OF_SEARCHES, SAME, TERMS, WITH_FORMAT, Term

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

    def counts(self) -> dict[str, float]:
        """Totals that terms keep of their work, such as a judge's requests and tokens."""
        found: dict[str, float] = {}
        for _, term, _ in self._terms:
            found |= getattr(term, "counts", dict)()
        return found

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


# Settings that single terms read: what each is there, and the terms.
_READ_BY = {
    "overlong_buffer": ("where the term overlong of reward.terms begins to cost", ("overlong",)),
    "refine_weight": ("what the term f1_refine of reward.terms gives", ("f1_refine",)),
}
_WEIGHTS = ("format_weight", "final_format_weight", "retrieval_weight")
_JUDGE_FACTS = ("url", "model", "key_variable")


def check_terms(config: Any) -> None:
    """Refuses terms that there are not, and settings that no term reads. Makes no term.

    Raises:
        ValueError: see `Reward`; or names a setting without its term, or a term without one.
    """
    names = {name for name, _ in _pairs(config.terms)}
    for name in names:
        _check_name(name)
    for key, (meaning, terms) in _READ_BY.items():
        if bool(names & set(terms)) != (config[key] > 0):
            raise ValueError(f"reward.{key}={config[key]} is {meaning}: set both or neither.")
    if config.free_searches and "search_cost" not in names:
        raise ValueError(
            f"reward.free_searches={config.free_searches} is read by the term search_cost of "
            "reward.terms, which is not there: add it, or set free_searches to 0."
        )
    _check_format(names, config)
    _check_judge(names, config.judge)


def _check_format(names: set[str], config: Any) -> None:
    weights = {key: config[key] for key in _WEIGHTS}
    if bool(names & set(WITH_FORMAT)) != any(weights.values()):
        key = next((key for key, weight in weights.items() if weight), "format_weight")
        raise ValueError(
            f"reward.{key}={weights[key]} is the share of the format in the terms "
            f"{', '.join(WITH_FORMAT)} of reward.terms, and in no others: set both or neither."
        )
    check_weights(**weights, where="reward.")


def _check_judge(names: set[str], judge: Any) -> None:
    given = [key for key in _JUDGE_FACTS if judge[key]]
    if "judge" not in names and given:
        raise ValueError(
            f"reward.judge.{given[0]}={judge[given[0]]!r} is read by the term judge of "
            "reward.terms, which is not there: add it, or clear reward.judge."
        )
    missing = [key for key in ("url", "model") if not judge[key]]
    if "judge" in names and missing:
        raise ValueError(
            f"reward.judge.{missing[0]} is not set: the term judge of reward.terms asks a "
            "language model, of which the address and the name have to be given."
        )


def reads_searches(config: Any) -> str | None:
    """The first setting, if any, by which a reward looks at searches: where none is made, a term
    of them is the same for all."""
    if config.retrieval_weight:
        return f"reward.retrieval_weight={config.retrieval_weight}"
    names = (name for name, _ in _pairs(config.terms) if name in OF_SEARCHES)
    return next((f"The term {name!r} of reward.terms" for name in names), None)


def check_key(config: Any) -> None:
    """Refuses a judge whose key is not there, before a run that will ask it.

    Raises:
        ValueError: names the setting and the environment variable.
    """
    if any(name == "judge" for name, _ in _pairs(config.terms)):
        try:
            read_key(config.judge.key_variable, KEY_OWNER)
        except ValueError as error:
            raise ValueError(f"reward.judge.key_variable: {error}") from error


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
    if not any(weight for _, weight in terms):
        raise ValueError(f"reward.terms={terms!r}: all weights are 0, which teaches nothing.")
    for one, other in SAME:
        if {one, other} <= seen:
            raise ValueError(f"reward.terms names {one!r} and {other!r}, which are one term.")
    return [(name, float(weight)) for name, weight in terms]


def _check_name(name: str) -> None:
    if is_import_path(name):
        load(name, "reward.terms")
    elif name not in TERMS:
        raise ValueError(
            f"reward.terms has {name!r}; a term is one of {', '.join(TERMS)}, or module:function."
        )


def _make_term(name: str, config: Any, budget: int) -> Term:
    _check_name(name)
    if is_import_path(name):
        return load(name, "reward.terms")
    return TERMS[name](config, budget)


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
