"""One search an episode instead of three.

Hypothesis: questions of one hop stay, those of more are lost: the budget is what the world is
about.

    python -m sr1_jax.train --config=configs/harder_one_search.py --workdir=runs/harder_one_search
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.rollout.max_searches = 1
    return config
