"""Settings of the learner and their checks."""

from __future__ import annotations

import ml_collections

from sr1_jax.rl.losses import KL_KINDS

OFFLOADABLE = ("reference", "optimizer")


def default_config() -> ml_collections.ConfigDict:
    """Settings of PPO with the published values (arXiv 2503.09516, appendix)."""
    config = ml_collections.ConfigDict()
    config.algorithm = "ppo"  # ppo (critic, GAE) or grpo (group-relative, no critic)
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
    # Trajectories a forward pass. Rows of like length share one: the fewer, the less padding.
    config.micro_batch = 16
    config.clip = 0.2
    config.value_clip = 0.5  # None: not clipped
    config.gamma = 1.0
    config.lam = 1.0
    config.whiten = True
    config.kl_coefficient = 0.001
    config.kl_in = "reward"  # reward, loss or none
    config.kl_kind = "k1"
    config.entropy_coefficient = 0.001
    config.old_logp = "rollout"  # rollout: as stored at sampling; trainer: recomputed
    config.mask_observations = True  # False: the ablation that trains on retrieved tokens
    config.truncated = "mask"  # or penalise
    config.truncation_penalty = 0.0
    config.length_buckets = tuple(range(256, 4097, 256))
    config.chunk_tokens = 2048  # tokens of a batch part that pass the output head at a time
    return config.lock()


def check_config(config: ml_collections.ConfigDict, trajectories: int) -> None:
    """Refuses settings that cannot work with `trajectories` a step.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    choices = {
        "algorithm": ("ppo", "grpo"),
        "kl_in": ("reward", "loss", "none"),
        "kl_kind": KL_KINDS,
        "old_logp": ("rollout", "trainer"),
        "optimizer_dtype": ("float32", "bfloat16"),
        "truncated": ("mask", "penalise"),
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
    minibatch, rest = divmod(trajectories, config.minibatches)
    if rest:
        raise ValueError(
            f"{trajectories} trajectories a step do not divide into learner.minibatches="
            f"{config.minibatches}."
        )
    if minibatch % config.micro_batch:
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
    if not config.mask_observations and config.old_logp != "trainer":
        raise ValueError(
            "learner.mask_observations=False needs learner.old_logp='trainer': retrieved tokens "
            "were not sampled, so they have no stored log-probability."
        )
    buckets = tuple(config.length_buckets)
    if not buckets or list(buckets) != sorted(set(buckets)):
        raise ValueError(f"learner.length_buckets must be increasing lengths, not {buckets}.")
