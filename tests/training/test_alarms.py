"""Alarms compare a metric with its own history; the formula is worked out by hand here."""

import json
import math

import numpy as np
import pytest

from sr1_jax.training.alarms import WATCHED, Alarms, deviation
from sr1_jax.training.settings import default_config


@pytest.fixture
def settings():
    settings = default_config().guards
    settings.window, settings.patience = 6, 2
    return settings


def by_hand(value, history, floor):
    """The formula by sorting, even and odd lengths."""

    def median(values):
        values = sorted(values)
        half = len(values) // 2
        return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2

    middle = median(history)
    return (value - middle) / max(1.4826 * median([abs(x - middle) for x in history]), floor)


def test_the_formula():
    assert deviation(9.0, [1, 2, 3, 4, 100], 0.1) == pytest.approx((9 - 3) / 1.4826)
    assert deviation(2.0, [1.0] * 5, 0.25) == 4.0
    rng = np.random.default_rng(0)
    for size in range(1, 12):
        history = rng.normal(size=size).tolist()
        value = float(rng.normal())
        assert deviation(value, history, 0.1) == pytest.approx(by_hand(value, history, 0.1))


def test_it_estimates_standard_deviations_of_normal_noise():
    history = np.random.default_rng(1).normal(3.0, 2.0, 20_001).tolist()
    assert deviation(3.0 + 4.0, history, 1e-9) == pytest.approx(2.0, rel=0.03)


def alarms_of(settings, name, values, state=None):
    """The numbers of the values at which there is an alarm, and the alarms."""
    (watched,) = [watched for watched in WATCHED if watched.name == name]
    alarms = Alarms(settings, state or {})
    found = [alarms.observe({watched.key: value}) for value in values]
    return [number for number, found in enumerate(found) if found], alarms


QUIET = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95]


@pytest.mark.parametrize(
    ("name", "quiet", "low", "high"),
    [
        ("entropy", QUIET, True, True),
        ("kl", QUIET, False, True),
        ("update_kl", QUIET, False, True),
        ("gradient_norm", QUIET, False, True),
        ("truncation", [0.1, 0.12, 0.08, 0.1, 0.1, 0.11], False, True),
        ("length", [400.0, 380, 420, 400, 410, 390], True, True),
        ("reward", [0.5, 0.52, 0.48, 0.5, 0.51, 0.49], True, False),
    ],
)
def test_each_metric_has_its_sides(settings, name, quiet, low, high):
    assert alarms_of(settings, name, quiet * 4)[0] == []
    assert bool(alarms_of(settings, name, quiet + [quiet[0] / 1e3] * 2)[0]) == low
    assert bool(alarms_of(settings, name, quiet + [quiet[0] * 1e3] * 2)[0]) == high


def test_every_metric_that_is_watched_was_tried():
    assert len(WATCHED) == 7
    assert {watched.name for watched in WATCHED} == set(default_config().guards.alarms)


def test_a_full_history_and_patience_come_before_an_alarm(settings):
    assert alarms_of(settings, "entropy", [*QUIET[:5], 1e-3, 1e-3])[0] == []
    assert alarms_of(settings, "entropy", [*QUIET, 1e-3, 1.0, 1e-3, 1.0])[0] == []
    # Of three steps in a row two are an alarm, and the third begins anew.
    assert alarms_of(settings, "entropy", [*QUIET, 1e-3, 1e-3, 1e-3, 1.0])[0] == [7]


def test_what_is_not_a_number_is_left_out(settings):
    found, alarms = alarms_of(settings, "entropy", [*QUIET, math.nan, 1e-3, math.nan, 1e-3])
    assert found == [9]
    assert len(alarms.state()["history"]["entropy"]) == 6
    assert alarms.observe({}) == []


def test_off_and_threshold(settings):
    fall, settings.patience = [*QUIET, 0.5], 1
    scaled = [math.log(x + 1e-3) for x in QUIET]
    far = -by_hand(math.log(0.5 + 1e-3), scaled, 0.1)
    settings.alarms.entropy.threshold = far - 0.01
    assert alarms_of(settings, "entropy", fall)[0]
    settings.alarms.entropy.threshold = far + 0.01
    assert not alarms_of(settings, "entropy", fall)[0]
    settings.alarms.entropy.threshold, settings.alarms.entropy.action = far / 2, "off"
    found, alarms = alarms_of(settings, "entropy", fall)
    assert not found and alarms.deviations["entropy"] < -5  # it is logged all the same


def test_a_run_taken_up_again_has_the_same_alarms(settings):
    values = [*QUIET, 1e-3, 1e-3, 1.0, 1e-3]
    whole, _ = alarms_of(settings, "entropy", values)
    for cut in range(len(values)):
        first, alarms = alarms_of(settings, "entropy", values[:cut])
        state = json.loads(json.dumps(alarms.state()))
        second, _ = alarms_of(settings, "entropy", values[cut:], state)
        assert first + [cut + number for number in second] == whole
