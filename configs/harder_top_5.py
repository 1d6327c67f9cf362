"""Five passages a search instead of two.

Hypothesis: recall grows, and so does what has to be read past; the paper's 7B falls from .431 to
.400 (arXiv 2503.09516).

    python -m sr1_jax.train --config=configs/harder_top_5.py --workdir=runs/harder_top_5
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.rollout.passages = 5
    config.rollout.max_observation_tokens = 280
    config.rollout.max_context_tokens = 432
    config.rollout.extend_buckets = (24, 48, 112, 280)
    config.learner.length_buckets = (136, 184, 240, 304, 432)
    return config
