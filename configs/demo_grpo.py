"""GRPO on the demo: eight samples a question are each other's baseline, no critic.

Hypothesis: the paper's GRPO learns faster than PPO at first, as no critic has to be learned
(arXiv 2503.09516, section 5.1). Formula of arXiv 2402.03300: standardised within the group, a mean
over sequences of token means, KL as a k3 loss. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_grpo.py --workdir=runs/demo_grpo
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.questions = 16
    config.samples = 8
    config.learner.algorithm = "grpo"
    config.learner.warmup_share = 0.00625  # there is no critic to wait for
    config.learner.loss_aggregation = "sequence"
    config.learner.kl_in = "loss"
    config.learner.kl_kind = "k3"
    return config
