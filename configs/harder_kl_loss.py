"""The KL as a loss instead of a part of the reward.

Hypothesis: where the KL enters decides little at the paper's coefficient of 0.001 (arXiv
2503.09516 has it in the reward with PPO and in the loss with GRPO, and no comparison).

    python -m sr1_jax.train --config=configs/harder_kl_loss.py --workdir=runs/harder_kl_loss
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.learner.kl_in = "loss"
    config.learner.kl_kind = "k3"
    return config
