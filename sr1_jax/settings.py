"""What a setting is: its default, its meaning, the values it takes, and whether a resumed run may
change it.

Each room declares its own `Section` of settings beside the checks that span several of them;
`training.settings` puts the sections of a run together. From one declaration come the defaults, the
range checks, `--help`, and what a resumed run is compared by.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

# What is wrong with a value, as the rest of the sentence "<key> must …"; None if nothing is.
Check = Callable[[Any], str | None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        default: its value unless another is given.
        meaning: one line for `--help`.
        check: refuses values out of range; see `at_least` and its like.
        type: of its values, where the default does not say: None stands for "off".
        free_on_resume: whether a run may be resumed with another value.
    """

    default: Any
    meaning: str
    check: Check | None = None
    type: type | types.UnionType | None = None
    free_on_resume: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """Settings and sections by name.

    Attributes:
        parts: in the order in which they are listed.
        open: whether keys that are not declared may be added, for factories of the user's own.
        others: settings that a section under an undeclared key may have beside its own keys.
        free_on_resume: of all settings in it.
    """

    parts: Mapping[str, Setting | Section]
    open: bool = False
    others: Section | None = None
    free_on_resume: bool = False

    def defaults(self) -> ml_collections.ConfigDict:
        """A `ConfigDict` with every default, locked: an unknown key is an error."""
        config = ml_collections.ConfigDict()
        for name, part in self.parts.items():
            if isinstance(part, Section):
                config[name] = part.defaults()
            elif part.type is object:
                config[name] = ml_collections.FieldReference(part.default, field_type=object)
            elif part.default is None:
                config[name] = config_dict.placeholder(part.type)
            else:
                config[name] = part.default
        config.lock()
        self._unlock_open(config)
        return config

    def _unlock_open(self, config: ml_collections.ConfigDict) -> None:
        """Unlocks the sections, at any depth, to which keys may be added, and no others."""
        for name, part in self.parts.items():
            if isinstance(part, Section):
                if part.open:
                    config[name].unlock()
                    # Unlocking reaches sections within, which are not all open.
                    for inner in part.parts:
                        if isinstance(part.parts[inner], Section):
                            config[name][inner].lock()
                part._unlock_open(config[name])

    def check(self, config: Mapping[str, Any], where: str = "") -> None:
        """Refuses the first value out of its range.

        Args:
            config: with the keys of this section.
            where: prefix of the keys in messages, such as "rollout.".

        Raises:
            ValueError: naming the key, its value and what would do.
        """
        for name, part in self.parts.items():
            value = config[name]
            if isinstance(part, Section):
                part.check(value, f"{where}{name}.")
                continue
            off = value is None and part.default is None
            problem = part.check(value) if part.check is not None and not off else None
            if problem:
                raise ValueError(f"{where}{name} must {problem}, not {value!r}.")

    def walk(self, where: str = "") -> Iterator[tuple[str, Setting]]:
        """Every setting with its dotted key, in order."""
        for name, part in self.parts.items():
            if isinstance(part, Section):
                yield from part.walk(f"{where}{name}.")
            else:
                yield f"{where}{name}", part

    def without_free(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `config` that a resumed run must not change."""
        kept = {}
        for name, value in config.items():
            part = self.parts.get(name)
            if part is not None and part.free_on_resume:
                continue
            if isinstance(part, Section):
                value = part.without_free(value)
            elif part is None and self.others is not None and isinstance(value, Mapping):
                free = self.others.free_on_resume
                value = {k: v for k, v in value.items() if not (free and k in self.others.parts)}
            kept[name] = value
        return kept

    def nearest(self, key: str) -> str | None:
        """The known dotted key that an unknown one most likely stands for, if any is close."""
        known = [name for name, _ in self.walk()]
        # A key given without its section, or under another one, is the commonest slip.
        leaf = key.rsplit(".", 1)[-1]
        same = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
        close = same or [
            name
            for name in difflib.get_close_matches(key, known, n=5, cutoff=0.6)
            # A long prefix in common says nothing of the last part.
            if difflib.SequenceMatcher(None, leaf, name.rsplit(".", 1)[-1]).ratio() >= 0.6
        ]
        if not close:
            leaves = {name.rsplit(".", 1)[-1]: name for name in known}
            close = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)]
        return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ends a message on an unknown name with the known one most like it; "" if none is."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(test: Callable[[float], bool], words: str) -> Check:
    def check(value):
        if _is_number(value) and not math.isfinite(value):
            return "be a finite number"
        return None if _is_number(value) and test(value) else words

    return check


def at_least(least: float) -> Check:
    """Finite numbers from `least` on."""
    words = "not be negative" if least == 0 else f"be at least {least:g}"
    return _number(lambda value: value >= least, words)


def whole_at_least(least: int) -> Check:
    """Whole numbers from `least` on."""

    def check(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and value >= least else f"be a whole number of at least {least}"

    return check


def above(bound: float) -> Check:
    """Finite numbers greater than `bound`."""
    words = "be positive" if bound == 0 else f"be above {bound:g}"
    return _number(lambda value: value > bound, words)


def between(least: float, most: float, *, open_below: bool = False, open_above: bool = False):
    """Numbers from `least` to `most`; an open end is left out."""

    def test(value):
        low = value > least if open_below else value >= least
        return low and (value < most if open_above else value <= most)

    left, right = "(" if open_below else "[", ")" if open_above else "]"
    # In full: of a large bound %g keeps six digits.
    low, high = (f"{int(x)}" if x == int(x) else f"{x:g}" for x in (least, most))
    return _number(test, f"lie in {left}{low}, {high}{right}")


def or_none(check: Check) -> Check:
    """What `check` lets pass, and None: "off"."""
    return lambda value: None if value is None else check(value)


def one_of(*choices: Any) -> Check:
    """One of some values."""
    words = "be one of " + ", ".join(map(str, choices))
    return lambda value: None if value in choices else words


def some_of(*choices: str) -> Check:
    """A tuple of some of these names, each at most once."""

    def check(value):
        good = isinstance(value, (tuple, list)) and len(set(value)) == len(value)
        if good and set(value) <= set(choices):
            return None
        return "hold only " + " and ".join(choices) + ", each once"

    return check


def increasing_lengths(*, may_be_empty: bool = False) -> Check:
    """A tuple of increasing whole numbers from 1 on."""

    def check(value):
        if isinstance(value, (tuple, list)) and (value or may_be_empty):
            whole = all(isinstance(size, int) and not isinstance(size, bool) for size in value)
            if whole and list(value) == sorted(set(value)) and (not value or value[0] >= 1):
                return None
        return "be increasing lengths"

    return check
