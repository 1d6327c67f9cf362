"""RLOO on the demo: the baseline of a sample is the mean of the others.

Hypothesis: an unbiased baseline does as well as GRPO's standardised one; the KL is part of the
reward (arXiv 2402.14740). Unlike there, several mini-batches a step, hence PPO's clipped ratio.

    python -m sr1_jax.train --config=configs/demo_rloo.py --workdir=runs/demo_rloo
"""

from configs import demo_grpo


def get_config():
    config = demo_grpo.get_config()
    config.learner.algorithm = "rloo"
    config.learner.loss_aggregation = "token"
    config.learner.kl_in = "reward"
    config.learner.kl_kind = "k1"
    return config
