"""The learner of a run, and the models it trains."""

from __future__ import annotations

import dataclasses

import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models import Decoder, Tokenizer, ValueModel, value_from_policy
from sr1_jax.models.lora import add_adapters
from sr1_jax.models.weights import build
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import needs_critic
from sr1_jax.training.policies import (
    critic_config,
    critic_files,
    decoder_config,
    lora_config,
    with_adapters,
)


def make_learner(
    config: ml_collections.ConfigDict, policy: Decoder, tokenizer: Tokenizer, mesh: Mesh
) -> Learner:
    """The learner of a run. But for the frozen base of adapters it has copies of its own of what
    it needs of `policy`, which may be freed."""
    return _learner(config, models_to_train(config, policy, tokenizer, mesh), mesh)


def make_abstract_learner(config: ml_collections.ConfigDict, mesh: Mesh) -> Learner:
    """The same learner of shapes: it lists the programs of a step, and its state takes no memory.

    Args:
        config: of the run.
        mesh: of devices that need not be there.

    Raises:
        ValueError: as `abstract_models` and `Learner`.
    """
    return _learner(config, abstract_models(config), mesh)


def _learner(
    config: ml_collections.ConfigDict, models: tuple[Decoder, ValueModel | None], mesh: Mesh
) -> Learner:
    return Learner(
        *models,
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
            source = build(critic_files(config, tokenizer), mesh)
        critic = value_from_policy(source, rows=policy.config.vocab_size, copy=lora is None)
    if lora is None:
        return policy, critic
    if critic is not None:
        critic = add_adapters(critic, lora, seed=config.seed + 1, mesh=mesh)
    return with_adapters(config, policy, mesh), critic


def abstract_models(config: ml_collections.ConfigDict) -> tuple[Decoder, ValueModel | None]:
    """What `models_to_train` gives, of shapes; of files only the heads are read.

    Raises:
        ValueError: as `policies.decoder_config` and `policies.critic_config`.
    """
    lora, critic = lora_config(config), None
    shape = dataclasses.replace(decoder_config(config), lora=lora)
    if needs_critic(config.learner):
        source = critic_config(config) if config.critic.path else shape
        source = dataclasses.replace(source, vocab_size=shape.vocab_size, lora=lora)
        critic = nnx.eval_shape(lambda: ValueModel(source, rngs=nnx.Rngs(0)))
    return nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0))), critic
