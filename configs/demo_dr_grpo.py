"""Dr. GRPO on the demo: GRPO without its two divisions.

Hypothesis: without the standard deviation questions of every difficulty count alike, and without
the length of the response long wrong answers are not spared (arXiv 2503.20783). No KL, as there.

    python -m sr1_jax.train --config=configs/demo_dr_grpo.py --workdir=runs/demo_dr_grpo
"""

from configs import demo_grpo


def get_config():
    config = demo_grpo.get_config()
    config.learner.algorithm = "dr_grpo"
    config.learner.loss_aggregation = "constant"
    config.learner.loss_constant = 96  # about what a policy can write within the context
    config.learner.kl_in = "none"
    return config
