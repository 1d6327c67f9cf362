"""REINFORCE++ on the demo: no critic, no groups; the batch is the baseline.

Hypothesis: 128 questions with one sample each teach more than 16 with eight, as no group is wasted
on equal rewards (arXiv 2501.03262): rewards to go with the KL at each token, normalised over the
batch. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_reinforce_pp.py --workdir=runs/demo_reinforce_pp
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.learner.algorithm = "reinforce_pp"
    config.learner.warmup_share = 0.00625  # there is no critic to wait for
    return config
