"""PPO on the demo with rollouts in bfloat16, and importance weights that mend it.

Hypothesis: truncated weights make up for a sampler that computes other probabilities than the
trainer (Yao et al. 2025, see sr1_jax/rl/losses.py); a dual clip (arXiv 1912.09729) bounds what is
left. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_importance.py --workdir=runs/demo_importance
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.rollout.weights = "bfloat16"
    config.learner.old_logp = "trainer"
    config.learner.importance_cap = 2.0
    config.learner.dual_clip = 3.0
    return config
