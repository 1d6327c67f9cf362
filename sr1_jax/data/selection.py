"""Which questions of a source are used: filters, and limits by set."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sr1_jax.data.prepared import QuestionIndex, Subset, index_of
from sr1_jax.data.questions import Question
from sr1_jax.import_path import blamed, load

_CONDITION = re.compile(r"(source|metadata(?:\.[^.=!]+)+)(!?=)(.+)", re.DOTALL)
_REST = "*"

Keep = Callable[[Question], bool]


def parse_filter(text: str, key: str = "data.filter") -> Keep:
    """A filter of questions.

    Args:
        text: `source=NAME`, `metadata.KEY=VALUE` (deeper with further dots), either with `!=`, and
            several values with `|` between them; or an import path `module:function` of a function
            that gets a `Question` and returns whether it is kept. A value is read as JSON if it is
            JSON, so that `false` and 2 mean themselves, or else as text. A key that a question
            does not have is equal to null.
        key: of the setting, for messages.

    Raises:
        ValueError: it has none of these forms, or there is no such function.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        if ":" in text and "=" not in text:
            return _asks(load(text, key), f"{key}={text!r}")
        raise ValueError(
            f"{key} has {text!r}; write source=NAME, metadata.KEY=VALUE, either with !=, or "
            "module:function."
        )
    path, sign, values = found.groups()
    wanted = [_value(value) for value in values.split("|")]
    _, *keys = path.split(".")

    def equal(question: Question) -> bool:
        value: Any = question.metadata if keys else question.source
        for name in keys:
            value = value.get(name) if isinstance(value, Mapping) else None
        return any(_same(value, one) for one in wanted)

    return equal if sign == "=" else lambda question: not equal(question)


def _asks(function: Callable[[Question], Any], setting: str) -> Keep:
    def keep(question: Question) -> bool:
        with blamed(f"{setting} on question {question.id}"):
            answer = function(question)
        if not isinstance(answer, bool | np.bool_):
            raise ValueError(
                f"{setting} must return True or False, not {answer!r} (question {question.id})."
            )
        return bool(answer)

    return keep


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _same(value: Any, wanted: Any) -> bool:
    # True == 1 in Python, but not in JSON.
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def check_pairs(pairs: Any, key: str, good: Callable[[Any], bool], words: str) -> dict[str, Any]:
    """Checks a setting that is a tuple of (name of a set, number).

    Args:
        pairs: the value.
        key: of the setting.
        good: says of a number whether it is in range.
        words: what it has to be, for messages.

    Raises:
        ValueError: naming the key and the value.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        sound = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        number = pair[1] if sound else None
        if not sound or isinstance(number, bool) or not good(number):
            raise ValueError(f"{key} must hold pairs of a set and {words}, not {pair!r}.")
        if pair[0] in found:
            raise ValueError(f"{key} names {pair[0]!r} twice.")
        found[pair[0]] = number
    return found


def check_known(names: Sequence[str], sources: Sequence[str], key: str) -> None:
    """Refuses names of sets that have no questions.

    Raises:
        ValueError: naming the key, the first such name, and the sets that there are.
    """
    for name in names:
        if name not in sources:
            raise ValueError(
                f"{key} names {name!r}, of which there are no questions; there are those of "
                f"{', '.join(sources)}."
            )


def select(
    source: Any,
    *,
    filters: Sequence[str] = (),
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Any:
    """The questions of a source that pass all filters, of each set at most so many.

    Limits count what passes the filters. What they keep is drawn at random by seed and set, and
    stays in its order; it depends on the set's questions alone, not on other sets.

    Args:
        source: random access to questions.
        filters: see `parse_filter`.
        limits: most questions by name of the set; "*" for every set that is not named. None, or
            no entry: all.
        seed: of the draw.

    Returns:
        The source itself where nothing is left out; or else a `Subset`.

    Raises:
        ValueError: no question is left, or a limit names a set of which there is none.
    """
    keeps = [parse_filter(text) for text in filters]
    if not keeps and not limits:
        return source
    index = index_of(source)
    numbers_Q = np.arange(len(source))
    if keeps:
        passes = (all(keep(question) for keep in keeps) for question in source)
        numbers_Q = np.flatnonzero(np.fromiter(passes, bool, count=len(source)))
        if not len(numbers_Q):
            raise ValueError(f"data.filter={tuple(filters)!r} leaves no question; change it.")
    if limits:
        check_known([name for name in limits if name != _REST], index.sources, "data.limit")
        numbers_Q = _limited(numbers_Q, index, limits, seed)
    return source if len(numbers_Q) == len(source) else Subset(source, numbers_Q)


def _limited(
    numbers_Q: np.ndarray, index: QuestionIndex, limits: Mapping[str, int], seed: int
) -> np.ndarray:
    kept = []
    for number, name in enumerate(index.sources):
        mine = numbers_Q[index.source_Q[numbers_Q] == number]
        limit = limits.get(name, limits.get(_REST))
        if limit is not None and limit < len(mine):
            bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(len(mine))
            # The draw of a smaller limit is part of that of a larger one.
            order = np.argsort(bits, kind="stable")
            mine = mine[order[:limit]]
        kept.append(mine)
    return np.sort(np.concatenate(kept))


def selection_sha(source: Any) -> bytes:
    """What tells a selection from another one of the same source; b"" of a whole source."""
    return source.numbers_Q.tobytes() if isinstance(source, Subset) else b""
