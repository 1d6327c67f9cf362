"""GRPO on the demo with the regulariser against likelihood displacement.

Hypothesis: keeping tokens of non-negative advantage from becoming less likely prevents GRPO's
collapse (arXiv 2512.04220) and costs nothing before it.

    python -m sr1_jax.train --config=configs/demo_displacement.py --workdir=runs/demo_displacement
"""

from configs import demo_grpo


def get_config():
    config = demo_grpo.get_config()
    config.learner.displacement_coefficient = 0.2
    return config
