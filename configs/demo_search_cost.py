"""PPO on the demo with a price on every search.

Hypothesis: a price of 0.1 a search, charged to the turn that searched, removes needless ones; one
that is too high teaches not to search at all, as answers of the demo cannot be known otherwise. The
weight is ours. Expected: fewer searches, exact match equal or lower, most of all on two hops.
Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_search_cost.py --workdir=runs/demo_search_cost
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.reward.terms = (("em", 1.0), ("search_cost", -0.1))
    return config
