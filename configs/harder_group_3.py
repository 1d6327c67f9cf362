"""GRPO with groups of three.

Hypothesis: a larger group is a better baseline and learns faster, and the paper's 7B falls from
.410 (one) over .363 (three) to .350 (five) at the end of training, when the larger groups have
collapsed (arXiv 2503.09516).

    python -m sr1_jax.train --config=configs/harder_group_3.py --workdir=runs/harder_group_3
"""

from configs import harder_grpo


def get_config():
    config = harder_grpo.get_config()
    config.samples = 3
    config.questions = 40  # as many trajectories a step
    return config
