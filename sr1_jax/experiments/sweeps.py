"""Lists of runs to be compared, and the stages that make them.

A list is a text file. A line is a name, a file of settings, and changes to it:

    # The first run is the one that the others are compared with.
    ppo      configs/harder.py
    no_mask  configs/harder_no_mask.py
    top_1    configs/harder.py  rollout.passages=1
    short    configs/harder_short_start.py  own_base

The runs of a seed start from one base policy, that of the first line; `own_base` gives a run a
supervised start of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from sr1_jax.experiments.derived import Overrides, derived_config, split_argument
from sr1_jax.experiments.plan import BASE, Plan, Row, check_untuned, from_base
from sr1_jax.training.checks import check_config

_OWN_BASE = "own_base"


class Entry(NamedTuple):
    """A line of a list.

    Attributes:
        name: of the run.
        config: FILE.py[:argument].
        overrides: (dotted key, text) of this run alone.
        own_base: whether it makes a base policy of its own.
    """

    name: str
    config: str
    overrides: Overrides
    own_base: bool


def read_list(path: Path) -> list[Entry]:
    """The runs of a list.

    Paths of settings are looked for where Python was started, and beside the list.

    Raises:
        ValueError: there is no such file; or naming file and line what is wrong in it.
    """
    if not path.is_file():
        raise ValueError(f"--list={path}: there is no such file.")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from error
        if not words:
            continue
        entry = _entry(words, path.parent, where)
        if entry.name in entries:
            raise ValueError(f"{where}: a run {entry.name!r} is there already; names are unique.")
        entries[entry.name] = entry
    if not entries:
        raise ValueError(f"{path}: no runs; write a name and a file of settings a line.")
    return list(entries.values())


def _entry(words: Sequence[str], folder: Path, where: str) -> Entry:
    name, *rest = words
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name == BASE:
        raise ValueError(
            f"{where}: {name!r} cannot be the name of a run: use letters, digits, _, -, + and ., "
            f"and not {BASE}."
        )
    if not rest:
        raise ValueError(f"{where}: {name} has no file of settings.")
    config, *changes = rest
    path, argument = split_argument(config)
    if not path.is_file() and (folder / path).is_file():
        path = folder / path
    own_base = _OWN_BASE in changes
    overrides = []
    for change in changes:
        key, equals, value = change.partition("=")
        if change != _OWN_BASE and not equals:
            raise ValueError(f"{where}: {change!r} is no change of a setting; write key=value.")
        if change != _OWN_BASE:
            overrides.append((key.removeprefix("--config."), value))
    return Entry(name, f"{path}{argument}", tuple(overrides), own_base)


def checked_configs(
    entries: Sequence[Entry], overrides: Overrides
) -> dict[str, ml_collections.ConfigDict]:
    """The settings of each run by its name, all of them checked.

    Args:
        entries: of a list.
        overrides: of all runs; those of a line come last.

    Raises:
        ValueError: naming the run and what is wrong.
    """
    configs = {}
    for entry in entries:
        try:
            config = derived_config(entry.config, (*overrides, *entry.overrides), {})
            check_config(config)
            if not entry.own_base:
                check_untuned(config)
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from error
        configs[entry.name] = config
    return configs


def sweep_plan(
    entries: Sequence[Entry],
    configs: Mapping[str, ml_collections.ConfigDict],
    overrides: Overrides,
    folder: Path,
    *,
    seeds: Sequence[int],
    asked: Mapping[int, Sequence[str]],
    limit: int = 0,
    corpora: Mapping[int, str] | None = None,
    indexes: Mapping[str, str] | None = None,
) -> Plan:
    """The stages of a sweep.

    Args:
        entries: of the list; the first is what the others are compared with.
        configs: of `checked_configs`.
        overrides: of all runs.
        folder: of the sweep, absolute.
        seeds: each has all runs.
        asked: files that every run answers at its end, by seed.
        limit: of each file; 0: all.
        corpora: see `Plan`.
        indexes: of runs of a pretrained policy by their names, the name of the index that each
            would build; who would build that of the first takes it from the base.
    """
    indexes = indexes or {}
    plan = Plan(folder, seeds, asked, reference=entries[0].name, limit=limit, corpora=corpora)
    for entry in entries:
        plan.rows[entry.name] = Row(entry.name, configs[entry.name].method, entry.name)
    first = entries[0]
    for seed in seeds:
        plan.train_base(seed, configs[first.name], first.config, (*overrides, *first.overrides))
        for entry in entries:
            config = configs[entry.name]
            values = {}
            if not entry.own_base:
                index = indexes.get(entry.name, "")
                same = index == indexes.get(first.name)
                values = from_base(config, plan.workdir(seed, BASE), index if same else "")
            values |= {"method": config.method}
            given = (entry.config, (*overrides, *entry.overrides), values)
            plan.train(seed, entry.name, *given)
            plan.evaluate(seed, entry.name, entry.name, *given, [config.method])
    return plan
