"""PPO on the demo with the published format reward.

Hypothesis: paying for the format teaches the protocol early and keeps it, most of all to models
that start without it; the demo's base policy already has it, so little changes here (arXiv
2505.15117, which sets 0.2 for a response that is well-formed all along and 0.1 for an ill-formed
one that ends in an answer). Expected: the share of well-formed responses up, exact match equal or
a little up. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_format_reward.py \
        --workdir=runs/demo_format_reward
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.reward.terms = (("em_format", 1.0),)
    config.reward.format_weight = 0.2
    config.reward.final_format_weight = 0.1
    return config
