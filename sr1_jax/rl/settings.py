"""Settings of the learner and their checks."""

from __future__ import annotations

import ml_collections

from sr1_jax.rl.aggregation import AGGREGATIONS
from sr1_jax.rl.estimators import ESTIMATORS
from sr1_jax.rl.losses import KL_KINDS, RATIOS
from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    increasing_lengths,
    one_of,
    or_none,
    some_of,
)

ALGORITHMS = tuple(ESTIMATORS)
# Baselines are made of the samples of a question; these algorithms need more than one.
GROUP_ALGORITHMS = tuple(name for name, known in ESTIMATORS.items() if known.compares_samples)

OFFLOADABLE = ("reference", "optimizer")

# PPO with the published values (arXiv 2503.09516, appendix). docs/algorithms.md says which settings
# make which algorithm.
LEARNER = Section(
    {
        "algorithm": Setting(
            "ppo",
            "advantages: "
            + "; ".join(f"{name} ({known.meaning})" for name, known in ESTIMATORS.items()),
            # Looked up when asked, so that what is added to the table later is known.
            lambda value: one_of(*ESTIMATORS)(value),
        ),
        "learning_rate": Setting(1e-6, "of the policy", above(0), free_on_resume=True),
        "critic_learning_rate": Setting(1e-5, "of the critic", above(0), free_on_resume=True),
        "warmup_share": Setting(
            0.0, "share of the run over which the policy's rate rises from 0", between(0, 1)
        ),
        "critic_warmup_share": Setting(
            0.0, "share of the run over which the critic's rate rises from 0", between(0, 1)
        ),
        "decay_share": Setting(
            0.0,
            "share of the run after which rates have fallen to a tenth, warm-up included; "
            "0: they stay",
            between(0, 1),
        ),
        "weight_decay": Setting(0.0, "of AdamW", at_least(0)),
        "adam_b2": Setting(0.999, "of AdamW", between(0, 1, open_above=True)),
        "adam_eps": Setting(1e-8, "of AdamW, added to the root that is divided by", above(0)),
        "gradient_clip": Setting(1.0, "global norm of gradients", above(0), free_on_resume=True),
        "optimizer_dtype": Setting(
            "float32", "of Adam's first moment", one_of("float32", "bfloat16")
        ),
        "offload": Setting(
            (),
            "what waits in the hosts' memory while it is not used: reference, optimizer",
            some_of(*OFFLOADABLE),
            free_on_resume=True,
        ),
        "epochs": Setting(1, "passes over the batch of a step", at_least(1)),
        "minibatch_size": Setting(
            256, "trajectories an optimizer step; at most all of a step's", at_least(1)
        ),
        "micro_batch": Setting(
            16, "rows that pass the model at a time", at_least(1), free_on_resume=True
        ),
        "packing": Setting(False, "whether a row holds several trajectories", free_on_resume=True),
        "share_prefixes": Setting(
            False,
            "whether packed rows hold once what trajectories of a question start with; "
            "updates are then of whole questions, as far as their size allows",
        ),
        "row_lengths": Setting(
            (),
            "tokens of packed rows; (): length_buckets, and four lengths up to 5/4 of the last",
            increasing_lengths(may_be_empty=True),
            free_on_resume=True,
        ),
        "clip": Setting(0.2, "of the ratio, below and above 1", at_least(0), free_on_resume=True),
        "clip_high": Setting(
            None, "above 1, where it differs", at_least(0), float, free_on_resume=True
        ),
        "dual_clip": Setting(None, "bound where advantages are negative", above(1), float),
        "ratio": Setting("token", "token, or sequence: one a trajectory (GSPO)", one_of(*RATIOS)),
        "loss_aggregation": Setting(
            "token", "mean over tokens, over sequences, or a constant", one_of(*AGGREGATIONS)
        ),
        "loss_constant": Setting(
            None, "tokens that loss_aggregation='constant' divides by", at_least(1), int
        ),
        "importance_cap": Setting(
            None, "of truncated importance weights trainer/sampler", above(0), float
        ),
        "displacement_coefficient": Setting(
            0.0, "of the penalty on likelihood displacement", at_least(0)
        ),
        "value_clip": Setting(
            0.5,
            "of the critic's change; None: not clipped",
            or_none(at_least(0)),
            free_on_resume=True,
        ),
        "gamma": Setting(1.0, "discount a policy token", between(0, 1)),
        "lam": Setting(1.0, "lambda of GAE", between(0, 1)),
        "whiten": Setting(True, "whether PPO's advantages are whitened"),
        "kl_coefficient": Setting(0.001, "of the KL; the first one, with a target", at_least(0)),
        "kl_target": Setting(None, "nats a token that the coefficient steers to", above(0), float),
        "kl_horizon": Setting(
            10_000, "trajectories over which the coefficient is steered", at_least(1)
        ),
        "kl_in": Setting("reward", "where the KL enters", one_of("reward", "loss", "none")),
        "kl_kind": Setting("k1", "its estimator", one_of(*KL_KINDS)),
        "entropy_coefficient": Setting(0.001, "of the entropy bonus", at_least(0)),
        "old_logp": Setting(
            "rollout",
            "old log-probabilities: as stored at sampling, or recomputed by the trainer",
            one_of("rollout", "trainer"),
        ),
        "skip_zero_advantages": Setting(
            False,
            "whether trajectories whose advantages are all 0 are left out of updates, which they "
            "cannot change; entropy, clip fractions and gaps are then of the others",
            free_on_resume=True,
        ),
        "mask_observations": Setting(
            True, "False: the ablation that trains on retrieved tokens too"
        ),
        "mask_advantages": Setting(
            True,
            "False: the ablation in which the policy's loss alone leaves retrieved tokens out, as "
            "in the original; GAE, whitening and the critic's loss run over them",
        ),
        "length_buckets": Setting(
            tuple(range(256, 4097, 256)),
            "lengths of rows; each is a program",
            increasing_lengths(),
        ),
        "chunk_tokens": Setting(
            2048,
            "tokens of a batch part that pass the output head at a time",
            at_least(1),
            free_on_resume=True,
        ),
    }
)


def default_config() -> ml_collections.ConfigDict:
    """The settings of a `Learner`."""
    return LEARNER.defaults()


def needs_critic(config: ml_collections.ConfigDict) -> bool:
    """Whether the algorithm learns a value model."""
    return ESTIMATORS[config.algorithm].needs_critic


def masks_observations(config: ml_collections.ConfigDict) -> bool:
    """Whether retrieved tokens are left out of everything, as they are but for ablations."""
    return config.mask_observations and config.mask_advantages


def minibatches(config: ml_collections.ConfigDict, trajectories: int) -> int:
    """Optimizer steps that one pass over the `trajectories` of a step takes."""
    return trajectories // min(config.minibatch_size, trajectories)


def optimizer_steps(config: ml_collections.ConfigDict, trajectories: int, steps: int) -> int:
    """Optimizer steps of a run of `steps` steps: what the shares of warm-up and decay are of."""
    return steps * config.epochs * minibatches(config, trajectories)


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
    LEARNER.check(config, "learner.")
    _check_sizes(config, trajectories)
    _check_loss(config)
    _check_kl(config, trajectories)
    _check_updates(config, trajectories)


def _check_sizes(config: ml_collections.ConfigDict, trajectories: int) -> None:
    count = minibatches(config, trajectories)
    size, rest = divmod(trajectories, count)
    if rest or size != min(config.minibatch_size, trajectories):
        raise ValueError(
            f"learner.minibatch_size={config.minibatch_size} does not divide the {trajectories} "
            "trajectories of a step (questions × samples)."
        )
    if config.share_prefixes and not config.packing:
        raise ValueError(
            "learner.share_prefixes=True is about packed rows: set learner.packing=True too."
        )
    if config.packing and size < config.micro_batch:
        raise ValueError(
            f"learner.micro_batch={config.micro_batch} packed rows are more than the {size} "
            "trajectories of a mini-batch: some would always be empty."
        )
    if not config.packing and size % config.micro_batch:
        raise ValueError(
            f"A mini-batch of {size} trajectories does not divide into micro-batches of "
            f"learner.micro_batch={config.micro_batch}."
        )
    slowest = max(config.warmup_share, config.critic_warmup_share)
    if config.decay_share and config.decay_share <= slowest:
        raise ValueError(
            f"learner.decay_share={config.decay_share} must exceed the warm-up's {slowest}, or be "
            "0."
        )
    lengths, buckets = row_lengths(config), config.length_buckets
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
    if not config.mask_advantages and (config.algorithm != "ppo" or not config.mask_observations):
        raise ValueError(
            "learner.mask_advantages=False is about GAE and the critic, and masks the policy's "
            "loss alone: it needs learner.algorithm='ppo' and learner.mask_observations=True, not "
            f"{config.algorithm!r} and {config.mask_observations}."
        )
    if config.ratio == "sequence" and not ESTIMATORS[config.algorithm].per_trajectory:
        good = [name for name, known in ESTIMATORS.items() if known.per_trajectory]
        raise ValueError(
            "learner.ratio='sequence' needs one advantage a trajectory, as of learner.algorithm="
            f"{', '.join(good)}; {config.algorithm} has one a token."
        )
    constant = config.loss_aggregation == "constant"
    if constant != bool(config.loss_constant):
        raise ValueError(
            "learner.loss_constant is the number of tokens by which learner.loss_aggregation="
            "'constant' divides, and nothing else does: set both or neither, not "
            f"{config.loss_constant} and {config.loss_aggregation!r}."
        )
    if config.skip_zero_advantages and (reasons := _trains_without_advantages(config)):
        raise ValueError(
            "learner.skip_zero_advantages leaves out trajectories that train all the same with "
            f"{reasons[0]}; change one of the two."
        )
    if config.importance_cap is not None:
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


def _trains_without_advantages(config: ml_collections.ConfigDict) -> list[str]:
    """The settings by which a token moves a model whatever its advantage is."""
    found = {
        f"learner.algorithm={config.algorithm!r}, whose critic learns from all": needs_critic(
            config
        ),
        "learner.kl_in='loss'": config.kl_in == "loss",
        f"learner.entropy_coefficient={config.entropy_coefficient}": config.entropy_coefficient,
        f"learner.displacement_coefficient={config.displacement_coefficient}": (
            config.displacement_coefficient
        ),
    }
    return [setting for setting, trains in found.items() if trains]


def _check_updates(config: ml_collections.ConfigDict, trajectories: int) -> None:
    """Refuses what needs more than one optimizer step a batch where there is only one.

    Raises:
        ValueError: naming the keys.
    """
    if config.displacement_coefficient and optimizer_steps(config, trajectories, steps=1) == 1:
        raise ValueError(
            "learner.displacement_coefficient compares the policy with itself before the step, "
            "which a single update never leaves: raise learner.epochs, lower "
            "learner.minibatch_size, or set it to 0."
        )


def _check_kl(config: ml_collections.ConfigDict, trajectories: int) -> None:
    if config.kl_in == "loss" and config.kl_kind == "k1":
        raise ValueError(
            "learner.kl_in='loss' with learner.kl_kind='k1' regularises nothing: the expected "
            "gradient of k1 is 0. Use learner.kl_kind='k3' or 'k2', or learner.kl_in='reward'."
        )
    if config.kl_target is None:
        return
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
