"""The harder world without the retrieved-token mask: everything after the prompt trains.

Hypothesis: the policy is pulled towards predicting passages, and ends lower: the paper finds .343
instead of .431 on average (arXiv 2503.09516, table 4).

    python -m sr1_jax.train --config=configs/harder_no_mask.py --workdir=runs/harder_no_mask
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.learner.mask_observations = False
    config.learner.old_logp = "trainer"  # retrieved tokens have none from sampling
    return config
