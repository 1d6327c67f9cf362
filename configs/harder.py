"""The harder world: up to three searches, comparisons, passages that mislead, and no answer at all.

Hypothesis: PPO with an outcome reward learns what no supervised trace shows, to go on after the
first fact, and this time not all of it within its budget, so that methods can be told apart.

    make harder
    python -m sr1_jax.train --config=configs/harder.py --workdir=runs/harder [--config.seed=1]
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.data.world = "harder"
    for method in ("cot", "ircot", "search_o1", "reader"):
        config.protocol[f"{method}_template"] = f"compact_{method}"

    config.warm_start.phases = (
        # Learns to copy: one passage a search, short texts. Nothing is left to chance.
        dict(
            name="copy",
            traces=12_000,
            mix=dict(
                direct=0.0,
                cot=0.0,
                rag_comparison=0.0,
                explore=0.0,
                misled=0.0,
                comparison=0.0,
                wander=0.0,
                alone=1.0,
            ),
            arbitrary=False,
            steps=450,
            learning_rate=6e-3,
        ),
        # Learns to read: which of several passages counts.
        dict(
            name="read",
            traces=16_000,
            mix=dict(
                direct=0.0, cot=0.0, explore=0.0, misled=0.3, wander=0.05, rag_comparison=0.12
            ),
            arbitrary=False,
            steps=600,
            learning_rate=6e-3,
        ),
        # Takes up the habits of world/harder/traces.py: needless searches, and giving up.
        dict(
            name="habits",
            traces=5_000,
            mix=dict(
                lazy=0.3, explore=1.0, two_hop=0.35, three_hop=0.2, comparison=0.2, wander=0.1
            ),
            steps=240,
            learning_rate=1.5e-3,
        ),
    )
    config.warm_start.length_buckets = (72, 104, 144, 192, 272)

    config.rollout.passages = 2
    config.rollout.max_searches = 3
    config.rollout.max_observation_tokens = 112
    config.rollout.max_context_tokens = 240
    config.rollout.extend_buckets = (24, 48, 112)
    config.learner.length_buckets = (80, 136, 184, 240)
    return config
