"""GRPO on the harder world: five samples a question are each other's baseline, no critic.

Hypothesis: the paper's PPO ends a little higher and GRPO learns faster at first (arXiv 2503.09516,
section 5.1). Estimator of configs/demo_grpo.py; starts from the base policy of runs/harder.

    python -m sr1_jax.train --config=configs/harder_grpo.py --workdir=runs/harder_grpo
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.questions = 24  # 120 trajectories a step, where PPO has 128
    config.samples = 5
    config.learner.minibatch_size = 40
    config.learner.algorithm = "grpo"
    config.learner.warmup_share = 0.00625  # there is no critic to wait for
    config.learner.loss_aggregation = "sequence"
    config.learner.kl_in = "loss"
    config.learner.kl_kind = "k3"
    return config
