"""Several plans side by side: topologies, and values of settings."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.planning.plan import Plan


class Case(NamedTuple):
    """One plan of a sweep.

    Attributes:
        topology: such as "v5e:8x8".
        settings: what differs from the config, by dotted key.
    """

    topology: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return " ".join([self.topology, *(f"{key}={v!r}" for key, v in self.settings.items())])

    def applied(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """A copy of the config with the settings of this case.

        Raises:
            ValueError: an unknown key, or a value of another type.
        """
        copy = config.copy_and_resolve_references()
        for key, value in self.settings.items():
            *sections, name = key.split(".")
            node = copy
            for section in sections:
                node = node.get(section) if isinstance(node, ml_collections.ConfigDict) else None
            if not isinstance(node, ml_collections.ConfigDict) or name not in node:
                raise ValueError(f"--vary={key}=…: the config has no key {key}.")
            try:
                node[name] = value
            except TypeError as error:
                raise ValueError(f"--vary={key}={value!r}: {error}") from error
        return copy


def cases_of(topologies: Sequence[str], variations: Sequence[str]) -> list[Case]:
    """Every topology with every combination of values.

    Args:
        topologies: names.
        variations: of the form KEY=VALUE,VALUE,…; values are Python literals or words.

    Raises:
        ValueError: a variation of another form, or a key that is given twice.
    """
    values: dict[str, tuple[Any, ...]] = {}
    for variation in variations:
        key, equals, text = variation.partition("=")
        if not (key and equals and text):
            raise ValueError(f"--vary={variation}: must be KEY=VALUE,VALUE,…")
        if key in values:
            raise ValueError(f"--vary={variation}: {key} is given twice.")
        try:
            values[key] = ast.literal_eval(f"({text},)")
        except (ValueError, SyntaxError):
            values[key] = tuple(text.split(","))
    combinations = [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]
    return [Case(topology, settings) for settings in combinations for topology in topologies]


class Growth(NamedTuple):
    """What more chips give, the settings being the same.

    Attributes:
        chips: times as many.
        speed: times as fast a step.
        held_back: of each term that gets faster by less than the step, the one that costs most
            first: its name, its seconds on fewer chips and on more.
    """

    chips: float
    speed: float
    held_back: list[tuple[str, float, float]]


def growth(fewer: Plan, more: Plan, least_share: float = 0.03) -> Growth | None:
    """What the larger of two topologies gives; None if it is not larger, or a plan has no steps.

    Args:
        fewer, more: plans with the same settings.
        least_share: of the step on more chips, for a term to be named.
    """
    chips = more.chips / fewer.chips
    if chips <= 1 or not fewer.step_seconds or not more.step_seconds:
        return None
    speed = fewer.step_seconds / more.step_seconds
    slower = [
        (term, fewer.terms[term], seconds)
        for term, seconds in more.terms.items()
        if term in fewer.terms
        and seconds >= least_share * more.step_seconds
        and fewer.terms[term] < speed * seconds
    ]
    # Seconds that are missing to a step that is as many times as fast as there are chips.
    slower.sort(key=lambda term: term[1] / chips - term[2])
    return Growth(chips, speed, slower)
