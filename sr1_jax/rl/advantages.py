"""Advantages: generalised advantage estimation, whitening, group baselines, rewards to go.

Alignment: reward, value and mask at index t belong to token t, and values_BT[:, t] is the critic's
estimate for the state before token t was chosen. A token with mask 0 (prompt, observation, padding)
is stepped over as if it were not there. All arithmetic is float32; every function can be jitted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from sr1_jax.rl.masked import masked_input, masked_mean, require_same_shape

# A spread below this share of the largest magnitude is float32 rounding, not signal.
_ROUNDING_SHARE = 1e-6


def gae(
    rewards_BT: Num[Array, "B T"],
    values_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimation over the policy's tokens.

    Schulman et al. 2016 (arXiv 1506.02438), equations 11, 12 and 16, in recursive form. With t' the
    next token of mask 1 after t, and V and A zero after the last one:

        delta_t = r_t + gamma V_t' - V_t
        A_t     = delta_t + gamma lam A_t'

    Args:
        rewards_BT: reward of each token. Rewards on masked tokens are ignored; under jit they
            cannot be reported, so put each on the last token of its segment.
        values_BT: value before each token.
        mask_BT: nonzero on tokens that train.
        gamma: discount per policy token.
        lam: lambda, the bias-variance trade-off.

    Returns:
        advantages_BT and returns_BT = advantages + values, float32, 0 on masked tokens. Neither
        is whitened.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(rewards=rewards_BT, values=values_BT, mask=mask_BT)
    rewards_BT = masked_input(rewards_BT, mask_BT)
    values_BT = masked_input(values_BT, mask_BT)
    valid_BT = jnp.asarray(mask_BT) != 0

    def step(carry, token):
        next_value_B, next_advantage_B = carry
        reward_B, value_B, valid_B = token
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = delta_B + gamma * lam * next_advantage_B
        carry = (
            jnp.where(valid_B, value_B, next_value_B),
            jnp.where(valid_B, advantage_B, next_advantage_B),
        )
        return carry, jnp.where(valid_B, advantage_B, 0.0)

    zero_B = jnp.zeros(rewards_BT.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(
        step, (zero_B, zero_B), (rewards_BT.T, values_BT.T, valid_BT.T), reverse=True
    )
    advantages_BT = advantages_TB.T
    # Masked values are 0 already, so the sum is 0 there as well.
    return advantages_BT, advantages_BT + values_BT


def whiten(
    x_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    eps: float = 0.0,
) -> Float[Array, "B T"]:
    """Shift and scale the valid tokens to mean 0 and unbiased variance 1, over the whole batch.

    Args:
        x_BT: any float dtype.
        mask_BT: nonzero on valid tokens.
        eps: added to the variance that is divided by, so that differences far below its root
            stay small instead of being blown up to variance 1.

    Returns:
        float32, 0 on masked tokens. All zeros if there are fewer than two valid tokens or if they
        do not differ by more than float32 rounding.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(x=x_BT, mask=mask_BT)
    x_BT = masked_input(x_BT, mask_BT)
    # The result does not depend on the scale; at scale 1 squares neither overflow nor vanish.
    magnitude = jnp.max(jnp.abs(x_BT), initial=0.0)
    x_BT = x_BT / jnp.where(magnitude > 0, magnitude, 1.0)
    centred_BT = x_BT - masked_mean(x_BT, mask_BT)
    # Once more: the rounding error of the first mean is common to all tokens.
    centred_BT = masked_input(centred_BT - masked_mean(centred_BT, mask_BT), mask_BT)
    count = jnp.count_nonzero(jnp.asarray(mask_BT))
    variance = jnp.sum(centred_BT**2) / jnp.maximum(count - 1, 1).astype(jnp.float32)
    # Asked this way round, a nan at a valid token stays visible.
    flat = variance <= _ROUNDING_SHARE**2
    # The root of eps in the unit of the scaled values; squared it could overflow.
    least = eps**0.5 / jnp.where(magnitude > 0, magnitude, 1.0)
    scale = 1 / jnp.hypot(jnp.sqrt(jnp.where(flat, 1.0, variance)), least)
    return jnp.where(flat | (jnp.asarray(mask_BT) == 0), 0.0, centred_BT * scale)


def group_relative(
    scores_B: Num[Array, "B"],
    group_B: Int[Array, "B"] | Int[np.ndarray, "B"],
    *,
    eps: float = 1e-6,
    valid_B: Num[Array, "B"] | Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Advantage of each trajectory within its group: (score - mean) / (std + eps).

    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300), section 4.1.2, with the unbiased standard
    deviation. A group of one keeps its score. A group whose scores are all equal gets exact zeros,
    and so does what is left of a larger group if `valid_B` leaves one member: there is nothing to
    compare it with.

    Args:
        scores_B: one score per trajectory.
        group_B: one integer per trajectory, equal within a group; any integers, in any order. NumPy
            ids may use all 64 bits; JAX ids are what JAX keeps of them, 32 bits by default.
        eps: added to the standard deviation.
        valid_B: nonzero on trajectories that count; by default all do. The others get 0 and have
            no part in the baseline of their group; they do count as its members.

    Returns:
        advantages_B, float32.

    Raises:
        ValueError: the shapes differ.
    """
    groups = _Groups.of(scores_B, group_B, valid_B)
    centred_B = groups.scores_B - groups.sum(groups.scores_B) / groups.size_B
    variance_B = groups.sum(centred_B**2) / jnp.maximum(groups.size_B - 1, 1)
    return groups.settled(centred_B / (jnp.sqrt(variance_B) + eps))


def group_centred(
    scores_B: Num[Array, "B"],
    group_B: Int[Array, "B"] | Int[np.ndarray, "B"],
    *,
    valid_B: Num[Array, "B"] | Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Advantage of each trajectory within its group: score - mean.

    Source: Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783): without the division by the
    standard deviation, which favours questions that are nearly always or nearly never solved.

    Arguments, groups of one, equal scores and errors as in `group_relative`.
    """
    groups = _Groups.of(scores_B, group_B, valid_B)
    return groups.settled(groups.scores_B - groups.sum(groups.scores_B) / groups.size_B)


def leave_one_out(
    scores_B: Num[Array, "B"],
    group_B: Int[Array, "B"] | Int[np.ndarray, "B"],
    *,
    valid_B: Num[Array, "B"] | Bool[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """Advantage of each trajectory: its score less the mean of the others of its group.

    Source: RLOO, Ahmadian et al. 2024 (arXiv 2402.14740). The baseline does not depend
    on the trajectory itself, so the policy gradient stays unbiased.

    Arguments, groups of one, equal scores and errors as in `group_relative`.
    """
    groups = _Groups.of(scores_B, group_B, valid_B)
    others_B = groups.sum(groups.scores_B) - groups.scores_B
    return groups.settled(groups.scores_B - others_B / jnp.maximum(groups.size_B - 1, 1))


def reinforce_pp(
    rewards_BT: Num[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    gamma: float = 1.0,
    eps: float = 1e-8,
) -> Float[Array, "B T"]:
    """Reward to go of each policy token, normalised over all policy tokens of the batch.

    Source: REINFORCE++, Hu et al. 2025 (arXiv 2501.03262): no critic and no group; the
    rewards hold the outcome at the last token and minus the weighted KL at every token.

        G_t = r_t + gamma G_t'        t' the next token of mask 1
        A_t = (G_t - mean G) / sqrt(var G + eps)

    Args:
        rewards_BT: reward of each token; what it holds at masked ones is ignored.
        mask_BT: nonzero on tokens that train.
        gamma: discount per policy token.
        eps: see `whiten`.

    Returns:
        advantages_BT, float32, 0 on masked tokens.

    Raises:
        ValueError: the shapes differ.
    """
    # Without values and with lambda 1, generalised advantages are rewards to go.
    returns_BT, _ = gae(rewards_BT, jnp.zeros(jnp.shape(rewards_BT)), mask_BT, gamma=gamma, lam=1.0)
    return whiten(returns_BT, mask_BT, eps=eps)


def nothing_to_compare(
    scores_B: Num[Array, "B"],
    group_B: Int[Array, "B"] | Int[np.ndarray, "B"],
    *,
    valid_B: Num[Array, "B"] | Bool[Array, "B"] | None = None,
) -> Bool[Array, "B"]:
    """Whether each trajectory's group is of several, no two valid ones of which differ in score.

    Such a group teaches nothing: its advantages are 0 by every estimator that compares the samples
    of a question. A group of one is not meant, since it is compared with nothing by design.

    Arguments and errors as in `group_relative`.
    """
    groups = _Groups.of(scores_B, group_B, valid_B)
    return groups.flat() & (groups.members_B > 1)


class _Groups(NamedTuple):
    """Who shares a group with whom.

    Attributes:
        scores_B: float32, 0 where not valid.
        valid_B: bool.
        members_B: int32 size of each trajectory's group, those not valid included.
        same_BB: bool, row i marks the valid members of i's group.
        size_B: their number, at least 1.
    """

    scores_B: jax.Array
    valid_B: jax.Array
    members_B: jax.Array
    same_BB: jax.Array
    size_B: jax.Array

    @classmethod
    def of(cls, scores_B, group_B, valid_B) -> "_Groups":
        require_same_shape(scores=scores_B, group=group_B)
        if not isinstance(group_B, jax.Array):
            # Ranks instead of ids: JAX would cut 64-bit ids to 32 and could merge groups.
            group_B = np.unique(np.asarray(group_B), return_inverse=True)[1]
        group_B = jnp.asarray(group_B)
        if valid_B is None:
            valid_B = jnp.ones(group_B.shape, bool)
        require_same_shape(scores=scores_B, valid=valid_B)
        valid_B = jnp.asarray(valid_B) != 0
        members_BB = group_B[:, None] == group_B[None, :]
        same_BB = members_BB & valid_B[None, :]
        size_B = jnp.maximum(jnp.sum(same_BB, axis=1), 1)
        return cls(
            masked_input(scores_B, valid_B), valid_B, jnp.sum(members_BB, axis=1), same_BB, size_B
        )

    def sum(self, x_B):
        """Sum over the valid members of each trajectory's group."""
        # Sums of selected entries, not a matrix product: that would be bfloat16 on a TPU.
        return jnp.sum(jnp.where(self.same_BB, x_B[None, :], 0.0), axis=1)

    def flat(self):
        """Whether all valid scores of each trajectory's group are equal, or there are none."""
        scores_1B = self.scores_B[None, :]
        low_B = jnp.min(jnp.where(self.same_BB, scores_1B, jnp.inf), axis=1, initial=jnp.inf)
        high_B = jnp.max(jnp.where(self.same_BB, scores_1B, -jnp.inf), axis=1, initial=-jnp.inf)
        # Asked this way round, a nan stays visible.
        return (low_B == high_B) | ~self.same_BB.any(axis=1)

    def settled(self, advantages_B):
        """The advantages, but scores of groups of one, and 0 where all are equal or not valid."""
        advantages_B = jnp.where(self.flat(), 0.0, advantages_B)
        advantages_B = jnp.where(self.members_B == 1, self.scores_B, advantages_B)
        return jnp.where(self.valid_B, advantages_B, 0.0)
