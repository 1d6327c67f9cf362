"""Losses of policy and critic, and KL estimates, over the tokens that train.

Pure functions, float32 inside. Only the first argument of each loss is differentiated: old
log-probabilities, advantages, old values and returns are data. All log-probabilities are natural.
"""

from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from sr1_jax.rl.aggregation import sequence_sums, weighted_sum
from sr1_jax.rl.masked import masked_input, masked_mean, require_same_shape

KL_KINDS = ("k1", "abs", "k2", "k3")
RATIOS = ("token", "sequence")

# exp(20) = 5e8 is far outside any clip range and far inside float32.
_MAX_LOG_RATIO = 20.0
_MAX_K3 = 10.0


def _check_bound(name: str, value: float) -> None:
    # Traced values cannot be inspected; they pass.
    if isinstance(value, Real) and not value >= 0:
        raise ValueError(f"{name} is {value}; choose a number >= 0")


def _clip_range(clip: float | Sequence[float]) -> tuple[float, float]:
    if clip is None:
        raise ValueError("clip is None; choose a number >= 0 or a (low, high) pair")
    if isinstance(clip, Sequence):
        if len(clip) != 2:
            raise ValueError(f"clip has {len(clip)} entries; give one number or a (low, high) pair")
        low, high = clip
    else:
        low = high = clip
    _check_bound("the lower clip bound", low)
    _check_bound("the upper clip bound", high)
    return low, high


def policy_loss(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    advantages_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip: float | Sequence[float],
    ratio: str = "token",
    dual_clip: float | None = None,
    weights_BT: Float[Array, "B T"] | None = None,
    sequence_BT: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """PPO's clipped surrogate, negated, averaged over the valid tokens.

    Schulman et al. 2017 (arXiv 1707.06347), equation 7, with r = exp(logp - old_logp):

        loss = -mean min(r A, clip(r, 1 - low, 1 + high) A)

    The log-ratio is limited to ±20 so that exp stays finite; beyond that its gradient is 0. At the
    very edge of the range the unclipped branch counts, so clip 0.0 still moves a policy that starts
    at r = 1.

    Args:
        logp_BT: log-probabilities of the sampled tokens under the policy in training.
        old_logp_BT: the same under the policy that defines the ratio.
        advantages_BT: advantages.
        mask_BT: nonzero on tokens that train; what the arrays hold elsewhere does not matter.
        clip: epsilon >= 0, or a pair (low, high) for unequal bounds, as in DAPO's clip-higher
            (arXiv 2503.14476, section 3.1). 0.0 is honoured.
        ratio: "token", or "sequence" for the ratio of GSPO (arXiv 2507.18071, equation 7): one a
            sequence, exp(mean over its valid tokens of logp - old_logp).
        dual_clip: c > 1; where A < 0 the surrogate is at least c A, so that a token that has
            become far likelier cannot dominate (arXiv 1912.09729). None: no bound.
        weights_BT: weight of each token in place of the mean, as of `aggregation.token_weights`.
        sequence_BT: of packed rows, the sequence of each token (`aggregation.sequence_sums`); for
            the ratio of sequences.

    Returns:
        loss (scalar), and the metrics, no gradient through them:
        clip_fraction: share of valid tokens where the clipped branch is the smaller one.
        approx_kl: masked mean of old_logp - logp in nats, the k1 estimate of KL(old || policy)
            under tokens sampled from old. It can be negative.
        dual_clip_fraction: share of valid tokens at that bound; only with one.

    Raises:
        ValueError: the shapes differ, clip is negative, None, or not one number or a pair,
            dual_clip is not above 1, or ratio is unknown.
    """
    require_same_shape(logp=logp_BT, old_logp=old_logp_BT, advantages=advantages_BT, mask=mask_BT)
    low, high = _clip_range(clip)
    if isinstance(dual_clip, Real) and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; choose a number > 1, or None")
    logp_BT = masked_input(logp_BT, mask_BT)
    old_logp_BT = jax.lax.stop_gradient(masked_input(old_logp_BT, mask_BT))
    advantages_BT = jax.lax.stop_gradient(masked_input(advantages_BT, mask_BT))

    log_ratio_BT = logp_BT - old_logp_BT
    ratio_BT = _ratio(log_ratio_BT, mask_BT, ratio, sequence_BT)
    # Spelled out by the sign of A, because min() splits the gradient between its branches at a tie.
    bound_BT = jnp.where(advantages_BT > 0, 1.0 + high, 1.0 - low)
    clipped_BT = jnp.where(
        advantages_BT > 0,
        ratio_BT > bound_BT,
        (advantages_BT < 0) & (ratio_BT < bound_BT),
    )
    surrogate_BT = jnp.where(clipped_BT, bound_BT, ratio_BT) * advantages_BT
    metrics = {
        "clip_fraction": masked_mean(clipped_BT, mask_BT),
        "approx_kl": masked_mean(-log_ratio_BT, mask_BT),
    }
    if dual_clip is not None:
        dual_BT = (advantages_BT < 0) & (ratio_BT > dual_clip)
        surrogate_BT = jnp.where(dual_BT, dual_clip * advantages_BT, surrogate_BT)
        metrics["dual_clip_fraction"] = masked_mean(dual_BT, mask_BT)
    if weights_BT is None:
        loss = -masked_mean(surrogate_BT, mask_BT)
    else:
        require_same_shape(logp=logp_BT, weights=weights_BT)
        loss = -weighted_sum(surrogate_BT, weights_BT)
    return loss, jax.lax.stop_gradient(metrics)


def _ratio(log_ratio_BT, mask_BT, kind: str, sequence_BT):
    """The importance ratio of each token, or of its sequence."""
    if kind not in RATIOS:
        raise ValueError(f"unknown ratio {kind!r}; choose one of {list(RATIOS)}")
    if kind == "sequence":
        valid_BT = (jnp.asarray(mask_BT) != 0).astype(jnp.float32)
        sums, counts = (sequence_sums(x_BT, sequence_BT) for x_BT in (log_ratio_BT, valid_BT))
        log_ratio_BT = jnp.broadcast_to(sums / jnp.maximum(counts, 1), log_ratio_BT.shape)
    return jnp.exp(jnp.clip(log_ratio_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def ratio_extremes(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
) -> dict[str, Float[Array, ""]]:
    """The largest and the smallest ratio exp(logp - old_logp) of a token, before any clipping.

    Args:
        logp_BT: log-probabilities of the sampled tokens under the policy in training.
        old_logp_BT: the same under the policy that defines the ratio.
        mask_BT: nonzero on tokens that train; what the arrays hold elsewhere does not matter.

    Returns:
        ratio_max, at least 1, and ratio_min, at most 1: what does not train counts as 1. The
        log-ratio is limited to ±20, as in `policy_loss`. No gradient goes through them.
    """
    require_same_shape(logp=logp_BT, old_logp=old_logp_BT, mask=mask_BT)
    log_ratio_BT = masked_input(logp_BT, mask_BT) - masked_input(old_logp_BT, mask_BT)
    ratio_BT = _ratio(log_ratio_BT, mask_BT, "token", None)
    extremes = {
        "ratio_max": jnp.max(ratio_BT, initial=1.0),
        "ratio_min": jnp.min(ratio_BT, initial=1.0),
    }
    return jax.lax.stop_gradient(extremes)


def displacement_penalty(
    logp_BT: Float[Array, "B T"],
    old_logp_BT: Float[Array, "B T"],
    advantages_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    count: float | Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean loss of log-probability over tokens that should not become less likely.

        mean over valid tokens with A >= 0 of max(0, old_logp - logp)

    Source: likelihood displacement, Deng et al. 2025 (arXiv 2512.04220), by token and without the
    paper's further gates, which leave out whole actions or responses that became likelier on
    average. At logp = old_logp the gradient is 0.

    Args:
        logp_BT, old_logp_BT, advantages_BT, mask_BT: as in `policy_loss`.
        count: what the sum is divided by; by default the number of those tokens. Micro-batches
            give that of the whole mini-batch.

    Returns:
        A scalar, nats a token, >= 0; 0 if there is no such token.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(logp=logp_BT, old_logp=old_logp_BT, advantages=advantages_BT, mask=mask_BT)
    lost_BT = jax.lax.stop_gradient(masked_input(old_logp_BT, mask_BT))
    lost_BT = lost_BT - masked_input(logp_BT, mask_BT)
    favoured_BT = (jnp.asarray(mask_BT) != 0) & (masked_input(advantages_BT, mask_BT) >= 0)
    if count is None:
        count = jnp.count_nonzero(favoured_BT)
    # Not maximum(), which splits the gradient at a tie: there nothing is lost.
    return jnp.sum(jnp.where(favoured_BT & (lost_BT > 0), lost_BT, 0.0)) / jnp.maximum(count, 1)


def importance_weights(
    logp_BT: Float[Array, "B T"],
    sample_logp_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    cap: float,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, ""]]]:
    """Truncated importance weights min(exp(logp - sample_logp), cap) of sampled tokens.

    Source: Ionides 2008, "Truncated importance sampling"; for sampler and trainer, which compute
    different probabilities with the same weights, Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training".
    Multiply the surrogate (or, as it is linear in them, the advantages) by these.

    Args:
        logp_BT: of the trainer, before any update.
        sample_logp_BT: of the sampler, as stored.
        mask_BT: nonzero on tokens that were sampled.
        cap: the largest weight, > 0.

    Returns:
        weights_BT, float32, 0 on masked tokens, no gradient through them; and the metrics
        importance_mean and importance_capped, mean weight and share of the tokens at the cap.

    Raises:
        ValueError: the shapes differ, or cap is not positive.
    """
    require_same_shape(logp=logp_BT, sample_logp=sample_logp_BT, mask=mask_BT)
    if isinstance(cap, Real) and not cap > 0:
        raise ValueError(f"the cap of importance weights is {cap}; choose a number > 0")
    log_ratio_BT = masked_input(logp_BT, mask_BT) - masked_input(sample_logp_BT, mask_BT)
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO))
    weights_BT = masked_input(jnp.minimum(ratio_BT, cap), mask_BT)
    metrics = {
        "importance_mean": masked_mean(weights_BT, mask_BT),
        "importance_capped": masked_mean(ratio_BT > cap, mask_BT),
    }
    return jax.lax.stop_gradient((weights_BT, metrics))


def value_loss(
    values_BT: Float[Array, "B T"],
    old_values_BT: Float[Array, "B T"],
    returns_BT: Float[Array, "B T"],
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    *,
    clip: float | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Critic loss: half the squared error, values clipped around the old ones, token mean.

        loss = 0.5 mean max((v - R)^2, (clip(v, old - c, old + c) - R)^2)

    Source: the value clipping of OpenAI Baselines' PPO2, described in Engstrom et al. 2020
    (arXiv 2005.12729), section 3.

    Args:
        values_BT: values of the critic in training.
        old_values_BT: values at rollout time.
        returns_BT: targets.
        mask_BT: nonzero on tokens that train; what the arrays hold elsewhere does not matter.
        clip: c >= 0 in units of value, 0.0 is honoured; None turns clipping off.

    Returns:
        loss (scalar), and clip_fraction: share of valid tokens where the clipped error is the
        larger one (and the gradient therefore 0).

    Raises:
        ValueError: the shapes differ, or clip is negative.
    """
    require_same_shape(values=values_BT, old_values=old_values_BT, returns=returns_BT, mask=mask_BT)
    values_BT = masked_input(values_BT, mask_BT)
    old_values_BT = jax.lax.stop_gradient(masked_input(old_values_BT, mask_BT))
    returns_BT = jax.lax.stop_gradient(masked_input(returns_BT, mask_BT))

    loss_BT = (values_BT - returns_BT) ** 2
    clipped_BT = jnp.zeros(loss_BT.shape, bool)
    if clip is not None:
        _check_bound("the value clip", clip)
        nearest_BT = jnp.clip(values_BT, old_values_BT - clip, old_values_BT + clip)
        clipped_loss_BT = jax.lax.stop_gradient((nearest_BT - returns_BT) ** 2)
        # Where it is larger, the value lies outside the range and the bound is a constant.
        clipped_BT = clipped_loss_BT > loss_BT
        loss_BT = jnp.where(clipped_BT, clipped_loss_BT, loss_BT)
    metrics = {"clip_fraction": masked_mean(clipped_BT, mask_BT)}
    return 0.5 * masked_mean(loss_BT, mask_BT), metrics


def kl_estimate(
    logp_BT: Float[Array, "*shape"],
    ref_logp_BT: Float[Array, "*shape"],
    kind: str,
    *,
    mask_BT: Num[Array, "*shape"] | Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """Per-token estimate of KL(policy || reference) from tokens sampled by the policy, in nats.

    Source: J. Schulman, "Approximating KL Divergence" (2020). With d = ref_logp - logp:

        k1    -d               unbiased; may be negative
        abs   |d|              a distance, not an estimate of the KL
        k2    d^2 / 2          biased, low variance
        k3    exp(d) - 1 - d   unbiased, never negative; here clipped to [-10, 10]

    Differentiable in both arguments. Where k3 is clipped its gradient is 0.

    Args:
        logp_BT: log-probabilities of the sampled tokens under the policy.
        ref_logp_BT: the same under the reference.
        kind: "k1", "abs", "k2" or "k3".
        mask_BT: optional; tokens where it is 0 give 0, with gradient 0, whatever the inputs hold
            there. Needed if those may be inf or nan and the result is differentiated.

    Returns:
        kl_BT, float32, same shape.

    Raises:
        ValueError: unknown kind, or the shapes differ.
    """
    if kind not in KL_KINDS:
        raise ValueError(f"unknown KL estimate {kind!r}; choose one of {list(KL_KINDS)}")
    require_same_shape(logp=logp_BT, ref_logp=ref_logp_BT)
    if mask_BT is None:
        mask_BT = jnp.ones(jnp.shape(logp_BT), bool)
    require_same_shape(logp=logp_BT, mask=mask_BT)
    difference_BT = masked_input(ref_logp_BT, mask_BT) - masked_input(logp_BT, mask_BT)
    if kind == "k1":
        return -difference_BT
    if kind == "abs":
        return jnp.abs(difference_BT)
    if kind == "k2":
        return 0.5 * difference_BT**2
    # Limiting d changes no value (k3 exceeds 10 at ±20 anyway) but keeps 0 * exp(d) finite in the
    # gradient. expm1 keeps the digits of a small difference.
    limited_BT = jnp.clip(difference_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return jnp.clip(jnp.expm1(limited_BT) - limited_BT, -_MAX_K3, _MAX_K3)
