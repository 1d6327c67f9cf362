"""One passage a search instead of two.

Hypothesis: one passage is not enough where another one misleads or only the second is right; the
paper's 7B falls from .431 to .375 (arXiv 2503.09516).

    python -m sr1_jax.train --config=configs/harder_top_1.py --workdir=runs/harder_top_1
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.rollout.passages = 1
    config.rollout.max_observation_tokens = 64
    return config
