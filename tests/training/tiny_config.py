"""A whole run in seconds: a small world and a policy that learns next to nothing."""

from sr1_jax.training.settings import default_config


def get_config():
    config = default_config()
    config.data.world_people = 64
    config.protocol.search_template = "compact_search"
    config.protocol.direct_template = "compact_direct"
    config.protocol.rag_template = "compact_rag"
    config.model.vocab_size = 600
    config.model.width = 16
    config.model.layers = 1
    config.model.heads = 2
    config.model.kv_heads = 1
    config.model.ff_width = 16

    config.warm_start.phases = (
        dict(name="read", traces=40, mix={}, steps=3, learning_rate=1e-2),
        dict(name="habits", traces=40, mix=dict(lazy=0.6), steps=2, learning_rate=1e-3),
    )
    config.warm_start.batch = 8
    config.warm_start.length_buckets = (256,)

    config.steps = 4
    config.questions = 4
    config.samples = 2
    config.rollout.slots = 8
    config.rollout.passages = 1
    config.rollout.max_searches = 1
    config.rollout.max_segment_tokens = 8
    config.rollout.max_observation_tokens = 48
    config.rollout.max_context_tokens = 120
    config.rollout.decode_steps = 8
    config.rollout.extend_buckets = (64,)

    # A policy this weak rarely gets to an end; cut episodes are what there is to learn from.
    config.reward.terms = (("em", 1.0), ("truncated", -1.0))
    config.learner.learning_rate = 1e-2
    config.learner.critic_learning_rate = 1e-2
    config.learner.micro_batch = 8
    config.learner.length_buckets = (120,)

    config.evaluation.every = 3
    config.evaluation.questions = 8
    config.evaluation.final_questions = 8
    config.evaluation.sampled = False
    config.checkpoint.every = 2
    config.checkpoint.keep = 5
    return config
