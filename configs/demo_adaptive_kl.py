"""PPO on the demo with a KL coefficient steered to a target.

Hypothesis: a target in nats a token is easier to choose than a coefficient, and holds the policy
where it is wanted (arXiv 1909.08593, section 2.2). Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_adaptive_kl.py --workdir=runs/demo_adaptive_kl
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.learner.kl_coefficient = 0.01
    config.learner.kl_target = 0.05
    config.learner.kl_horizon = 1280  # ten steps: the coefficient moves by at most 2 % a step
    return config
