"""Settings of the learner and their checks."""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

from sr1_jax.rl.aggregation import AGGREGATIONS
from sr1_jax.rl.losses import KL_KINDS, RATIOS

# Baselines are made of the samples of a question; these algorithms need more than one.
GROUP_ALGORITHMS = ("grpo", "dr_grpo", "rloo")
ALGORITHMS = ("ppo", *GROUP_ALGORITHMS, "reinforce_pp")

OFFLOADABLE = ("reference", "optimizer")


def default_config() -> ml_collections.ConfigDict:
    """Settings of PPO with the published values (arXiv 2503.09516, appendix).

    docs/algorithms.md says which settings make which algorithm.
    """
    config = ml_collections.ConfigDict()
    # How advantages are estimated: ppo (critic, GAE), grpo, dr_grpo or rloo (the samples of a
    # question), reinforce_pp (the batch).
    config.algorithm = "ppo"
    config.learning_rate = 1e-6
    config.critic_learning_rate = 1e-5
    config.warmup_steps = 0  # optimizer steps of linear warm-up
    config.critic_warmup_steps = 0
    config.decay_steps = 0  # optimizer steps until the rate has fallen to a tenth; 0: constant
    config.weight_decay = 0.0
    config.adam_b2 = 0.999
    config.gradient_clip = 1.0  # global norm
    config.optimizer_dtype = "float32"  # of Adam's first moment; or bfloat16
    # What waits in the hosts' memory while it is not used: "reference", "optimizer", or both.
    config.offload = ()
    config.epochs = 1
    config.minibatches = 2  # optimizer steps an epoch
    # Rows a forward pass. A row is a trajectory; those of like length share a pass, and the fewer
    # they are, the less padding. With packing a row holds several.
    config.micro_batch = 16
    config.packing = False
    # Tokens of packed rows; (): learner.length_buckets, and four lengths up to 5/4 of the last.
    config.row_lengths = ()
    config.clip = 0.2
    config.clip_high = config_dict.placeholder(float)  # upper clip; None: as clip
    config.dual_clip = config_dict.placeholder(float)  # bound where advantages are negative
    config.ratio = "token"  # or sequence: one a trajectory (GSPO)
    config.loss_aggregation = "token"  # a mean over tokens; or sequence, or constant
    config.loss_constant = config_dict.placeholder(int)  # tokens, for loss_aggregation="constant"
    config.importance_cap = config_dict.placeholder(float)  # of trainer/sampler; None: no weights
    config.displacement_coefficient = 0.0
    config.value_clip = 0.5  # None: not clipped
    config.gamma = 1.0
    config.lam = 1.0
    config.whiten = True  # advantages of PPO
    config.kl_coefficient = 0.001  # the first one, with a target
    config.kl_target = config_dict.placeholder(float)  # nats a token; None: fixed coefficient
    config.kl_horizon = 10_000  # trajectories over which the coefficient is steered to the target
    config.kl_in = "reward"  # reward, loss or none
    config.kl_kind = "k1"
    config.entropy_coefficient = 0.001
    config.old_logp = "rollout"  # rollout: as stored at sampling; trainer: recomputed
    config.mask_observations = True  # False: the ablation that trains on retrieved tokens
    config.truncated = "mask"  # or penalise
    config.truncation_penalty = 0.0
    config.overlong_buffer = 0  # tokens before rollout.max_context_tokens in which length costs
    config.overlong_penalty = 1.0  # at its end; linear in between
    config.length_buckets = tuple(range(256, 4097, 256))
    config.chunk_tokens = 2048  # tokens of a batch part that pass the output head at a time
    return config.lock()


def needs_critic(config: ml_collections.ConfigDict) -> bool:
    """Whether the algorithm learns a value model."""
    return config.algorithm == "ppo"


def row_lengths(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Lengths that a packed row may have, increasing.

    Few of the longest trajectories leave room for another, if rows are no longer than they are:
    hence the usual ones go beyond them.
    """
    if config.row_lengths:
        return tuple(config.row_lengths)
    last = config.length_buckets[-1]
    return (*config.length_buckets, *(last + -(-last * part // 16) for part in range(1, 5)))


def check_config(config: ml_collections.ConfigDict, trajectories: int) -> None:
    """Refuses settings that cannot work with `trajectories` a step.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    choices = {
        "algorithm": ALGORITHMS,
        "kl_in": ("reward", "loss", "none"),
        "kl_kind": KL_KINDS,
        "old_logp": ("rollout", "trainer"),
        "optimizer_dtype": ("float32", "bfloat16"),
        "truncated": ("mask", "penalise"),
        "loss_aggregation": AGGREGATIONS,
        "ratio": RATIOS,
    }
    for key, allowed in choices.items():
        if config[key] not in allowed:
            raise ValueError(
                f"learner.{key} must be one of {', '.join(allowed)}, not {config[key]!r}."
            )
    for key in ("epochs", "minibatches", "micro_batch", "chunk_tokens"):
        if config[key] < 1:
            raise ValueError(f"learner.{key} must be at least 1, not {config[key]}.")
    if unknown := set(config.offload) - set(OFFLOADABLE):
        raise ValueError(
            f"learner.offload may name {' and '.join(OFFLOADABLE)}, not {', '.join(unknown)}."
        )
    for key in ("clip", "clip_high", "kl_coefficient", "displacement_coefficient",
                "overlong_buffer", "overlong_penalty"):  # fmt: skip
        if config[key] is not None and not config[key] >= 0:
            raise ValueError(f"learner.{key} must not be negative, not {config[key]}.")
    _check_sizes(config, trajectories)
    _check_loss(config)
    _check_kl(config, trajectories)


def _check_sizes(config: ml_collections.ConfigDict, trajectories: int) -> None:
    minibatch, rest = divmod(trajectories, config.minibatches)
    if rest:
        raise ValueError(
            f"{trajectories} trajectories a step do not divide into learner.minibatches="
            f"{config.minibatches}."
        )
    if config.packing and minibatch < config.micro_batch:
        raise ValueError(
            f"learner.micro_batch={config.micro_batch} packed rows are more than the {minibatch} "
            "trajectories of a mini-batch: some would always be empty."
        )
    if not config.packing and minibatch % config.micro_batch:
        raise ValueError(
            f"A mini-batch of {minibatch} trajectories does not divide into micro-batches of "
            f"learner.micro_batch={config.micro_batch}."
        )
    slowest = max(config.warmup_steps, config.critic_warmup_steps)
    if config.decay_steps and config.decay_steps <= slowest:
        raise ValueError(
            f"learner.decay_steps={config.decay_steps} must exceed the warm-up of {slowest} steps, "
            "or be 0."
        )
    buckets = tuple(config.length_buckets)
    if not buckets or list(buckets) != sorted(set(buckets)):
        raise ValueError(f"learner.length_buckets must be increasing lengths, not {buckets}.")
    lengths = row_lengths(config)
    if list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise ValueError(f"learner.row_lengths must be increasing lengths, not {lengths}.")
    if lengths[-1] < buckets[-1]:
        raise ValueError(
            f"learner.row_lengths={lengths} end before the last of learner.length_buckets, "
            f"{buckets[-1]}: a trajectory of that length would fit no packed row."
        )


def _check_loss(config: ml_collections.ConfigDict) -> None:
    if not config.mask_observations and config.old_logp != "trainer":
        raise ValueError(
            "learner.mask_observations=False needs learner.old_logp='trainer': retrieved tokens "
            "were not sampled, so they have no stored log-probability."
        )
    if config.ratio == "sequence" and config.algorithm not in GROUP_ALGORITHMS:
        raise ValueError(
            "learner.ratio='sequence' needs one advantage a trajectory, as of learner.algorithm="
            f"{', '.join(GROUP_ALGORITHMS)}; {config.algorithm} has one a token."
        )
    constant = config.loss_aggregation == "constant"
    if constant != bool(config.loss_constant) or (constant and config.loss_constant < 1):
        raise ValueError(
            "learner.loss_constant is the number of tokens by which learner.loss_aggregation="
            "'constant' divides, and nothing else does: set both or neither, not "
            f"{config.loss_constant} and {config.loss_aggregation!r}."
        )
    if config.dual_clip is not None and not config.dual_clip > 1:
        raise ValueError(f"learner.dual_clip must be above 1 or None, not {config.dual_clip}.")
    if config.importance_cap is not None:
        if not config.importance_cap > 0:
            raise ValueError(
                f"learner.importance_cap must be above 0 or None, not {config.importance_cap}."
            )
        if config.old_logp != "trainer":
            raise ValueError(
                "learner.importance_cap needs learner.old_logp='trainer': with the stored "
                "log-probabilities the ratio corrects for the sampler already."
            )
        if not config.mask_observations:
            raise ValueError(
                "learner.importance_cap excludes learner.mask_observations=False: retrieved tokens "
                "were not sampled, so they have no importance weight."
            )
    if config.displacement_coefficient and config.epochs * config.minibatches == 1:
        raise ValueError(
            "learner.displacement_coefficient compares the policy with itself before the step, "
            "which a single update never leaves: raise learner.epochs or learner.minibatches, or "
            "set it to 0."
        )


def _check_kl(config: ml_collections.ConfigDict, trajectories: int) -> None:
    if config.kl_target is None:
        return
    if not config.kl_target > 0:
        raise ValueError(f"learner.kl_target must be above 0 or None, not {config.kl_target}.")
    if config.kl_in == "none" or not config.kl_coefficient > 0:
        raise ValueError(
            "learner.kl_target steers a coefficient: it needs learner.kl_in='reward' or 'loss' and "
            f"learner.kl_coefficient above 0, not {config.kl_in!r} and {config.kl_coefficient}."
        )
    if not config.kl_horizon > 0.2 * trajectories:
        raise ValueError(
            f"learner.kl_horizon={config.kl_horizon} must exceed a fifth of the {trajectories} "
            "trajectories a step, or the coefficient could reach 0."
        )
