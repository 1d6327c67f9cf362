"""The learner of a run, and the models it trains."""

from __future__ import annotations

import ml_collections
from jax.sharding import Mesh

from sr1_jax.models import Decoder, Tokenizer, ValueModel, value_from_policy
from sr1_jax.models.lora import add_adapters
from sr1_jax.models.weights import build
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import needs_critic
from sr1_jax.training.policies import critic_checkpoint, lora_config


def make_learner(
    config: ml_collections.ConfigDict, policy: Decoder, tokenizer: Tokenizer, mesh: Mesh
) -> Learner:
    """The learner of a run. But for the frozen base of adapters it has copies of its own of what
    it needs of `policy`, which may be freed."""
    return Learner(
        *models_to_train(config, policy, tokenizer, mesh),
        config.learner,
        mesh,
        trajectories=config.questions * config.samples,
        steps=config.steps,
        temperature=config.rollout.temperature,
    )


def models_to_train(
    config: ml_collections.ConfigDict, policy: Decoder, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[Decoder, ValueModel | None]:
    """The policy, and for PPO its critic, with adapters if there are to be any.

    With adapters the critic has its own on the policy's frozen trunk (or on that of critic.path),
    and a head: no trunk is held twice.
    """
    lora, critic = lora_config(config), None
    if needs_critic(config.learner):
        source = policy
        if config.critic.path:
            source = build(critic_checkpoint(config, tokenizer), mesh)
        critic = value_from_policy(source, rows=policy.config.vocab_size, copy=lora is None)
    if lora is None:
        return policy, critic
    if critic is not None:
        critic = add_adapters(critic, lora, seed=config.seed + 1, mesh=mesh)
    return add_adapters(policy, lora, seed=config.seed, mesh=mesh), critic
