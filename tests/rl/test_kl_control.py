"""The adaptive KL coefficient against hand-worked updates."""

import pytest

from sr1_jax.rl.kl_control import adaptive_kl_coefficient


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (6.0, 0.5),  # on target
        (6.6, 0.5 * (1 + 0.1 * 0.1)),  # 10 % above, gain 0.1
        (5.4, 0.5 * (1 - 0.1 * 0.1)),
        (7.2, 0.5 * (1 + 0.1 * 0.2)),  # at the limit of the error
        (600.0, 0.5 * (1 + 0.1 * 0.2)),
        (-3.0, 0.5 * (1 - 0.1 * 0.2)),  # sampled estimates can be negative
    ],
)
def test_hand_numbers(observed, expected):
    updated = adaptive_kl_coefficient(0.5, observed, target=6.0, horizon=1000.0, batch_size=100)
    assert updated == pytest.approx(expected, rel=1e-12)
    assert isinstance(updated, float)


def test_it_steers_a_policy_to_the_target():
    # A policy whose KL falls as the coefficient grows: KL = 1 / coefficient.
    coefficient = 0.01
    for _ in range(400):
        coefficient = adaptive_kl_coefficient(
            coefficient, 1 / coefficient, target=4.0, horizon=1000.0, batch_size=100
        )
    assert 1 / coefficient == pytest.approx(4.0, rel=1e-3)


def test_zero_stays_off():
    assert adaptive_kl_coefficient(0.0, 9.0, target=1.0, horizon=10.0, batch_size=1) == 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"observed_kl": float("nan")}, "observed_kl is nan"),
        ({"observed_kl": float("inf")}, "observed_kl is inf"),
        ({"coefficient": -0.1}, "coefficient is -0.1"),
        ({"coefficient": float("nan")}, "coefficient is nan"),
        ({"target": 0.0}, "target is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"horizon": 20.0, "batch_size": 100}, "more than 20 trajectories"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    arguments = {"coefficient": 0.1, "observed_kl": 1.0, "target": 1.0}
    arguments |= {"horizon": 100.0, "batch_size": 10} | changed
    with pytest.raises(ValueError, match=message):
        adaptive_kl_coefficient(**arguments)
