"""A share of the reward for the format (arXiv 2505.15117).

Hypothesis: it helps policies that lose episodes to bad form, base models above all; a policy that
a supervised start has taught the tags gains little.

    python -m sr1_jax.train --config=configs/harder_format_reward.py \
        --workdir=runs/harder_format_reward
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.reward.terms = (("em_format", 1.0),)
    config.reward.format_weight = 0.2
    return config
