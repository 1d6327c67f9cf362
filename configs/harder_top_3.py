"""Three passages a search instead of two.

Hypothesis: the paper's number of passages: what two miss, a third seldom has, and it costs
context.

    python -m sr1_jax.train --config=configs/harder_top_3.py --workdir=runs/harder_top_3
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.rollout.passages = 3
    config.rollout.max_observation_tokens = 168
    config.rollout.max_context_tokens = 304
    config.rollout.extend_buckets = (24, 48, 112, 168)
    config.learner.length_buckets = (80, 136, 184, 240, 304)
    return config
