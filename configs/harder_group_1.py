"""GRPO with groups of one: REINFORCE with the reward as it is.

Hypothesis: without a baseline learning is slow and stays stable; the paper's best of the three
group sizes, .410 (arXiv 2503.09516).

    python -m sr1_jax.train --config=configs/harder_group_1.py --workdir=runs/harder_group_1
"""

from configs import harder_grpo


def get_config():
    config = harder_grpo.get_config()
    config.samples = 1
    config.questions = 120  # as many trajectories a step
    config.learner.algorithm = "reinforce"
    return config
