"""Alarms of a collapse: metrics that leave the range of their own recent history.

With h the values of the last guards.window steps before this one, on the scale of the metric (see
`Watched.log_offset`),

    deviation = (x - median(h)) / max(1.4826 · median(|h - median(h)|), floor)

1.4826 times the median absolute deviation is the standard deviation of a normal distribution.
Neither it nor the median is moved by a few outliers, as mean and standard deviation would be. The
floor is what counts as noise in a history that does not vary at all.

Source: F. Hampel, "The influence curve and its role in robust estimation", JASA 69 (1974).
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.settings import Section, Setting, above, one_of

# From the mildest on; of several alarms in a step the strictest action is taken.
ACTIONS = ("off", "warn", "lower_rate", "roll_back", "stop")

_TO_STANDARD_DEVIATION = 1.4826


class Watched(NamedTuple):
    """A metric that tells of collapses.

    Attributes:
        name: of the alarm.
        key: of the metric.
        meaning: for people.
        low, high: on which sides of its history it may not be.
        floor: of the spread, on its scale.
        log_offset: for metrics of which ratios count: the scale is log(max(x, 0) + offset), and
            the offset is what differs little from 0. None: the scale is that of the metric.
    """

    name: str
    key: str
    meaning: str
    low: bool
    high: bool
    floor: float
    log_offset: float | None = None

    def scaled(self, value: float) -> float:
        """The value on the scale on which it is compared."""
        return value if self.log_offset is None else math.log(max(value, 0.0) + self.log_offset)

    def beyond(self, deviation: float) -> float:
        """How far a deviation is on a side where it may not be; 0 or less: it is not."""
        return max(-deviation if self.low else 0.0, deviation if self.high else 0.0)


WATCHED = (
    Watched("entropy", "policy/entropy", "entropy, nats a token", True, True, 0.1, 1e-3),
    Watched("kl", "kl", "KL to the reference", False, True, 0.1, 1e-2),
    Watched("update_kl", "policy/approx_kl", "KL of an update", False, True, 0.1, 1e-3),
    Watched("gradient_norm", "policy/gradient_norm", "gradient norm", False, True, 0.1, 1e-3),
    Watched("truncation", "truncated", "share of truncated episodes", False, True, 0.02),
    Watched("length", "response_tokens", "tokens of a response", True, True, 0.1, 1.0),
    Watched("reward", "reward", "mean reward", True, False, 0.02),
)


def _alarm_settings(watched: Watched) -> Section:
    sides = " and ".join(side for side in ("low", "high") if getattr(watched, side))
    return Section(
        {
            "threshold": Setting(
                8.0, f"deviations from its history ({sides}) of {watched.meaning}", above(0)
            ),
            "action": Setting(
                "warn", "what an alarm does: " + ", ".join(ACTIONS), one_of(*ACTIONS)
            ),
        }
    )


ALARMS = Section({watched.name: _alarm_settings(watched) for watched in WATCHED})


class Alarm(NamedTuple):
    """An alarm of a step.

    Attributes:
        name: of the metric watched.
        action: of `ACTIONS`.
        message: what is seen, for people.
    """

    name: str
    action: str
    message: str


def deviation(value: float, history: Sequence[float], floor: float) -> float:
    """Robust deviation of a value from its history: see the head of this file.

    Args:
        value: compared.
        history: at least one value.
        floor: of the spread, above 0.
    """
    middle = statistics.median(history)
    spread = statistics.median(abs(x - middle) for x in history)
    return (value - middle) / max(_TO_STANDARD_DEVIATION * spread, floor)


class Alarms:
    """Watches metrics of a run from step to step.

    A metric without a number in a step (it is not finite, or not logged) is left out there. There
    is no alarm before the history is full.

    Args:
        settings: the section guards.
        state: of `state`, where a run goes on; {} at its start.

    Attributes:
        deviations: of the last step by name, of the metrics whose history was full.
    """

    def __init__(self, settings: ml_collections.ConfigDict, state: Mapping[str, Any]):
        self._settings = settings
        kept, streaks = state.get("history", {}), state.get("streaks", {})
        self._history = {
            watched.name: collections.deque(kept.get(watched.name, ()), maxlen=settings.window)
            for watched in WATCHED
        }
        self._streaks = {watched.name: streaks.get(watched.name, 0) for watched in WATCHED}
        self.deviations: dict[str, float] = {}

    def observe(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """The alarms of a step, whose metrics become part of the history."""
        self.deviations = {}
        return [alarm for watched in WATCHED if (alarm := self._observe(watched, metrics))]

    def _observe(self, watched: Watched, metrics: Mapping[str, float]) -> Alarm | None:
        value = metrics.get(watched.key, math.nan)
        if not math.isfinite(value):
            return None
        history, scaled = self._history[watched.name], watched.scaled(value)
        before = list(history)
        history.append(scaled)
        if len(before) < self._settings.window:
            return None
        found = self.deviations[watched.name] = deviation(scaled, before, watched.floor)
        own = self._settings.alarms[watched.name]
        self._streaks[watched.name] += 1
        if watched.beyond(found) <= own.threshold or own.action == "off":
            self._streaks[watched.name] = 0
        if self._streaks[watched.name] < self._settings.patience:
            return None
        self._streaks[watched.name] = 0  # the next alarm needs as many steps again
        return Alarm(
            watched.name,
            own.action,
            f"{watched.meaning} is {value:.3g}, {found:+.1f} deviations from the median of "
            f"{len(before)} steps (guards.alarms.{watched.name})",
        )

    def suspects(self, *actions: str) -> bool:
        """Whether a metric is beyond its threshold, if not for long enough, whose alarm would do
        one of these actions."""
        return any(
            streak and self._settings.alarms[name].action in actions
            for name, streak in self._streaks.items()
        )

    def state(self) -> dict[str, Any]:
        """What a run that goes on here has to be given; JSON-able."""
        history = {name: list(values) for name, values in self._history.items()}
        return {"history": history, "streaks": dict(self._streaks)}
