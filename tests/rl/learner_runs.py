"""Learners for tests: their settings, and steps that leave the initial state as it is."""

import dataclasses
import functools

import jax
import numpy as np

from sr1_jax.rl.batch import make_batch
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import default_config, needs_critic
from sr1_jax.rl.update import ModelState

LENGTH, TRAJECTORIES, STEPS = 24, 16, 100

batch_of = functools.partial(make_batch, length=LENGTH, pad_id=0)


def learner_config(**changes):
    """Settings strong enough that every term of the loss shows in the result."""
    config = default_config()
    config.update(
        learning_rate=1e-4,
        critic_learning_rate=1e-4,
        gradient_clip=0.05,  # below the norms met here: clipping is at work
        micro_batch=8,
        kl_coefficient=0.3,
        entropy_coefficient=0.1,
        gamma=0.97,
        lam=0.9,
        length_buckets=(LENGTH,),
        chunk_tokens=40,
    )
    config.update(changes)
    return config


class LearnerRun:
    """A learner whose initial state is never used up, with a policy away from the reference."""

    def __init__(self, policy, critic, config, mesh):
        self.config = config
        critic = critic if needs_critic(config) else None
        self.learner = Learner(policy, critic, config, mesh, trajectories=TRAJECTORIES, steps=STEPS)
        start = self.learner.initial_state()
        self.start = start
        self.moved = start._replace(policy=ModelState(_moved(start.policy.params), start[0][1]))

    def step(self, batch, state=None, *, seed=0, step=1):
        """Runs one step from a copy of `state`, by default the initial one; new state, metrics."""
        return self.result(batch, state, seed=seed, step=step)[:2]

    def result(self, batch, state=None, *, seed=0, step=1):
        """The same, with all that the step returns."""
        state = self.start if state is None else state
        copy = jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), state)
        return self.learner.step(copy, batch, seed=seed, step=step)


def with_reward(trajectory, reward):
    """The same trajectory with another reward, all of it for its last segment."""
    segment_rewards = np.zeros_like(trajectory.segment_rewards)
    segment_rewards[-1] = reward
    return dataclasses.replace(trajectory, reward=reward, segment_rewards=segment_rewards)


def _moved(params):
    """Parameters a little off, the same on any mesh."""
    rng = np.random.default_rng(17)

    def move(x):
        noise = rng.normal(size=x.shape, scale=0.02)
        return jax.device_put((np.asarray(x) + noise).astype(np.float32), x.sharding)

    return jax.tree.map(move, params)
