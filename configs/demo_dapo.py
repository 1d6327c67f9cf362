"""DAPO on the demo: clip-higher, dynamic sampling, token mean, a soft length penalty.

Hypothesis: with a base policy that is right one time in seven, most groups are all wrong; replacing
them makes each step worth more, at the price of further rollouts (arXiv 2503.14476).

    python -m sr1_jax.train --config=configs/demo_dapo.py --workdir=runs/demo_dapo
"""

from configs import demo_clip_higher


def get_config():
    config = demo_clip_higher.get_config()
    config.dynamic_sampling_rounds = 2
    config.reward.terms = (("em", 1.0), ("overlong", -0.5))
    config.reward.overlong_buffer = 16
    return config
