"""GAE the way of the original: only the policy's loss leaves retrieved tokens out.

Hypothesis: returns and whitening over tokens that nobody chose add noise to advantages, and cost
a little; the original's code does so, and newer verl skips observations. The paper has no figure.

    python -m sr1_jax.train --config=configs/harder_original_gae.py \
        --workdir=runs/harder_original_gae
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.learner.mask_advantages = False
    return config
