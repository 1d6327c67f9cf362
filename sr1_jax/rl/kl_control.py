"""A KL coefficient that steers the observed KL towards a target."""

import math
from typing import SupportsFloat

_MAX_RELATIVE_ERROR = 0.2


def adaptive_kl_coefficient(
    coefficient: float,
    observed_kl: SupportsFloat,
    *,
    target: float,
    horizon: float,
    batch_size: int,
) -> float:
    """The next KL coefficient: larger if the policy strayed beyond the target, else smaller.

    Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, a proportional controller in log space:

        error = clip((observed_kl - target) / target, -0.2, 0.2)
        next  = coefficient * (1 + error * batch_size / horizon)

    The paper's constant K is batch_size / horizon here, so that the speed per trajectory does not
    depend on the batch size; batch_size == 0.1 * horizon gives the published K = 0.1.

    Args:
        coefficient: the current coefficient, >= 0. Zero stays zero.
        observed_kl: the KL to the reference measured since the last update, a number or a scalar
            array, in the unit of target (nats per token or per trajectory).
        target: the KL wanted, > 0.
        horizon: trajectories over which the error is worked off, > 0.2 * batch_size, so that the
            coefficient stays positive.
        batch_size: trajectories since the last update, > 0.

    Returns:
        The coefficient for the next update, a Python float.

    Raises:
        ValueError: an argument is outside its range or not finite.
    """
    observed_kl = float(observed_kl)
    if not math.isfinite(observed_kl):
        raise ValueError(f"observed_kl is {observed_kl}; the policy or the reference has diverged")
    if not 0 <= coefficient < math.inf:
        raise ValueError(f"coefficient is {coefficient}; start from a finite number >= 0")
    if not 0 < target < math.inf:
        raise ValueError(f"target is {target}; choose a finite KL > 0")
    if not batch_size > 0:
        raise ValueError(f"batch_size is {batch_size}; it counts trajectories and must be > 0")
    if not horizon > _MAX_RELATIVE_ERROR * batch_size:
        raise ValueError(
            f"horizon is {horizon} for batch_size {batch_size}; choose a horizon of more than "
            f"{_MAX_RELATIVE_ERROR * batch_size:g} trajectories, or the coefficient could reach 0"
        )
    error = (observed_kl - target) / target
    error = min(max(error, -_MAX_RELATIVE_ERROR), _MAX_RELATIVE_ERROR)
    return float(coefficient * (1 + error * batch_size / horizon))
