"""Clip-higher on the demo: unlikely tokens may gain more than they may lose.

Hypothesis: a wider upper clip keeps the entropy up, and with it the second searches that the base
policy rarely makes (arXiv 2503.14476, section 3.1). Token mean and no KL, as there.

    python -m sr1_jax.train --config=configs/demo_clip_higher.py --workdir=runs/demo_clip_higher
"""

from configs import demo_grpo


def get_config():
    config = demo_grpo.get_config()
    config.learner.clip_high = 0.28
    config.learner.loss_aggregation = "token"
    config.learner.kl_in = "none"
    return config
