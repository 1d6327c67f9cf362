"""The demo without the retrieved-token mask: every token after the prompt trains.

Hypothesis: the policy is pulled towards predicting passages; the paper finds .343 instead of
.431 on average (arXiv 2503.09516, table 4). Old log-probs are recomputed by the trainer, as
retrieved tokens have none from sampling.

    python -m sr1_jax.train --config=configs/demo_no_mask.py --workdir=runs/demo_no_mask
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.learner.mask_observations = False
    config.learner.old_logp = "trainer"
    return config
