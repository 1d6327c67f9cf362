"""R1 on the demo's world: the same reinforcement learning without search.

Hypothesis: without a search the policy learns which guesses pay, and no more (the paper's R1
baseline, arXiv 2503.09516, section 4.2). Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_r1.py --workdir=runs/demo_r1
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.method = "direct"
    config.learner.length_buckets = (64, 136)
    return config
