"""The demo: a 0.6M-parameter policy learns to search a fictional world on a laptop.

Hypothesis: PPO with an outcome reward finds out that two-hop questions take two searches, though
every supervised trace of a two-hop question gave up after the first hop.

    make demo
    python -m sr1_jax.train --config=configs/demo.py --workdir=runs/demo [--config.seed=1]
"""

from sr1_jax.training.settings import default_config


def get_config():
    config = default_config()
    config.data.world_people = 640
    config.protocol.search_template = "compact_search"
    config.protocol.direct_template = "compact_direct"
    config.protocol.rag_template = "compact_rag"

    config.model.ff_width = 256
    config.model.qk_norm = True

    config.warm_start.phases = (
        # Learns to read and to copy from traces in which nothing is left to chance.
        dict(
            name="read",
            traces=12_000,
            mix=dict(direct=0.0, explore=0.0),
            arbitrary=False,
            steps=700,
            learning_rate=6e-3,
            evaluate_at=(200, 400),
        ),
        # Takes up the habits of data/traces.py: needless searches, and giving up at once.
        dict(
            name="habits",
            traces=4_000,
            mix=dict(lazy=0.6, two_hop=0.6, explore=1.0, wander=0.1, retry=0.15),
            steps=240,
            learning_rate=1.5e-3,
            length_buckets=(136,),
        ),
    )
    config.warm_start.worlds = 16
    config.warm_start.batch = 32
    config.warm_start.length_buckets = (64, 96, 136)

    config.steps = 160
    config.questions = 128
    config.rollout.slots = 128
    config.rollout.passages = 1
    config.rollout.max_searches = 2
    config.rollout.max_segment_tokens = 48
    config.rollout.max_observation_tokens = 40
    config.rollout.max_context_tokens = 136
    config.rollout.decode_steps = 16
    config.rollout.extend_buckets = (24, 40)

    config.learner.learning_rate = 1e-3
    config.learner.critic_learning_rate = 2e-3
    config.learner.warmup_share = 0.025  # the critic has to see some rewards first
    config.learner.critic_warmup_share = 0.00625
    config.learner.decay_share = 1.0
    config.learner.adam_b2 = 0.99
    config.learner.micro_batch = 8
    config.learner.minibatch_size = 32
    config.learner.length_buckets = (64, 96, 136)

    config.evaluation.every = 40
    config.evaluation.questions = 200
    config.evaluation.final_questions = 400
    config.checkpoint.every = 20
    return config
