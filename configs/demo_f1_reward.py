"""PPO on the demo with F1 as the reward.

Hypothesis: partly right answers that are paid in part make the reward denser, but arXiv 2602.19526
finds that F1 alone falls behind exact match, as policies come to avoid answers. The demo's answers
are names of few words, so the difference is small. Expected: F1 equal or up, exact match equal or
down, more episodes without an answer. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_f1_reward.py --workdir=runs/demo_f1_reward
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.reward.terms = (("f1", 1.0),)
    return config
