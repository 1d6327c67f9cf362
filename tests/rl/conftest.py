"""A tiny policy with a critic, made-up trajectories of it, and learners compiled once a file."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from learner_runs import TRAJECTORIES, LearnerRun, batch_of, learner_config

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.decoder import Decoder, DecoderConfig, ValueModel
from sr1_jax.sharding import make_mesh

VOCAB = 24


def _unsettle(model) -> None:
    """Adds noise to all parameters, so that none starts at zero and shuts off others."""
    rng = np.random.default_rng(5)
    state = nnx.state(model)
    nnx.update(
        model,
        jax.tree.map(
            lambda x: x + jax.numpy.asarray(rng.normal(size=x.shape, scale=0.15), x.dtype), state
        ),
    )


@pytest.fixture(scope="session")
def rl_policy() -> Decoder:
    """Random weights everywhere, and a head of its own, so that logits are of order one."""
    config = DecoderConfig(
        vocab_size=VOCAB,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        ff_width=16,
        qkv_bias=True,
        tied_embeddings=False,
    )
    policy = Decoder(config, rngs=nnx.Rngs(3))
    _unsettle(policy)
    return policy


@pytest.fixture(scope="session")
def rl_critic(rl_policy) -> ValueModel:
    """A critic that already has an opinion."""
    critic = ValueModel(rl_policy.config, rngs=nnx.Rngs(4))
    _unsettle(critic)
    return critic


@pytest.fixture(scope="session")
def full_logp(rl_policy):
    """Function of (ids_T, params=None, temperature=1.0): log-softmax over [T, V] of one sequence.

    Row t is the distribution of token t; row 0 is nan, as nothing precedes it.
    """
    graph, initial = nnx.split(rl_policy)

    @jax.jit
    def logits(params, ids_BT):
        return nnx.merge(graph, params)(ids_BT)

    def run(ids_T, params=None, temperature=1.0):
        logits_TV = logits(initial if params is None else params, np.asarray(ids_T)[None])[0]
        logits_TV = np.asarray(logits_TV, np.float64) / temperature
        highest_T1 = logits_TV.max(-1, keepdims=True)
        total_T1 = np.log(np.exp(logits_TV - highest_T1).sum(-1, keepdims=True))
        logp_TV = logits_TV - highest_T1 - total_T1
        return np.concatenate([np.full((1, VOCAB), np.nan), logp_TV[:-1]])

    return run


@pytest.fixture(scope="session")
def trajectories(full_logp, make_trajectory) -> list[Trajectory]:
    """16 trajectories, four samples a question, with exact behaviour log-probs.

    Three lengths, one to four segments that each earn a reward, 1 to 15 policy tokens.
    """
    rng = np.random.default_rng(11)
    made = []
    for row in range(TRAJECTORIES):
        length = (9, 16, 22)[row % 3]
        mask = np.zeros(length, np.int32)
        prompt = int(rng.integers(3, 6))
        position = prompt
        while position < length:
            written = int(rng.integers(1, 6))
            mask[position : position + written] = 1
            position += written + int(rng.integers(1, 5))
        if row == 3:
            mask[prompt + 1 :] = 0  # a single token of its own
        ids = rng.integers(0, VOCAB, length).astype(np.int32)
        logp = full_logp(ids)[np.arange(length), ids]
        segment_rewards = rng.choice(np.float32([0.0, 0.25, 0.5]), np.sum(np.diff(mask) > 0))
        made.append(
            make_trajectory(
                ids=ids,
                mask=mask,
                logp=np.where(mask, logp, 0).astype(np.float32),
                prompt_length=prompt,
                question_id=f"made:train:{row // 4}",
                sample=row % 4,
                reward=float(segment_rewards.sum()),
                segment_rewards=segment_rewards,
            )
        )
    assert min(t.mask.sum() for t in made) == 1 and max(t.mask.sum() for t in made) > 10
    return made


@pytest.fixture(scope="session")
def batch(trajectories):
    return batch_of(trajectories)


@pytest.fixture(scope="session")
def stale(trajectories):
    """Trajectories of a policy that is neither the learner's nor the reference: the ratio leaves
    the clip range, and the KL is not 0."""
    rng = np.random.default_rng(23)
    return [
        dataclasses.replace(
            t,
            logp=(t.logp + t.mask * rng.normal(size=len(t.ids), scale=0.3)).astype(np.float32),
        )
        for t in trajectories
    ]


@pytest.fixture(scope="session")
def learner_run(rl_policy, rl_critic):
    """Function of (mesh shape, **settings) -> `LearnerRun`; equal calls share one."""

    @functools.cache
    def run(shape=(1, 1, 1), **changes):
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        return LearnerRun(rl_policy, rl_critic, learner_config(**changes), mesh)

    return run
