"""The settings of a run small enough to be compiled in a test."""

from sr1_jax.training.settings import default_config


def tiny_config(**mesh):
    config = default_config()
    config.model.vocab_size, config.model.width, config.model.ff_width = 384, 64, 192
    config.questions = config.rollout.slots = 8
    config.rollout.max_context_tokens = 128
    config.rollout.max_segment_tokens = config.rollout.max_observation_tokens = 24
    config.rollout.extend_buckets = (16, 32)
    config.learner.micro_batch = config.learner.minibatch_size = 4
    config.learner.length_buckets = (64, 128)
    config.learner.chunk_tokens = 64
    for axis, size in mesh.items():
        config.mesh[axis] = size
    return config
