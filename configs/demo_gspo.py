"""GSPO on the demo: one importance ratio a response, clipped as a whole.

Hypothesis: a ratio of the reward's own unit is less noisy than one a token (arXiv 2507.18071). Its
clip range is far smaller, as it is a geometric mean.

    python -m sr1_jax.train --config=configs/demo_gspo.py --workdir=runs/demo_gspo
"""

from configs import demo_grpo


def get_config():
    config = demo_grpo.get_config()
    config.learner.ratio = "sequence"
    config.learner.clip = 3e-4
    config.learner.clip_high = 4e-4
    config.learner.kl_in = "none"
    return config
