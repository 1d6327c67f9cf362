"""The tiny run with a policy that has learned to write tags, so that episodes, their lengths and
their rewards differ; mini-batches, micro-batches and length buckets are several."""

from tiny_config import get_config as tiny_config


def get_config():
    config = tiny_config()
    config.model.width = 32
    config.model.ff_width = 64
    config.warm_start.phases = (
        dict(name="read", traces=400, mix=dict(direct=0.0), steps=120, learning_rate=2e-2),
    )
    config.warm_start.batch = 16
    config.warm_start.length_buckets = (96, 144, 192)
    config.steps = 3
    config.questions = 8
    config.reward.terms = (("em_format", 1.0), ("truncated", -1.0))
    config.reward.format_weight = 0.5
    config.rollout.max_segment_tokens = 24
    config.rollout.max_context_tokens = 152
    config.learner.learning_rate = 1e-3
    config.learner.critic_learning_rate = 1e-3
    # Adam takes a full step along a gradient that is all rounding, as that of the critic's layers
    # is while its head is near zero: with 1e-8, runs on 1 and on 2 devices differ by 1e-3.
    config.learner.adam_eps = 1e-3
    config.learner.minibatch_size = 4
    config.learner.micro_batch = 4
    config.learner.length_buckets = (96, 152)
    config.evaluation.every = 2
    return config
