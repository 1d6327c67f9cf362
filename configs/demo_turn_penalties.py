"""PPO on the demo with penalties on the turns that earned them.

Hypothesis: charging a repeated query, and a turn without an action that was carried out, to its own
turn spares the good turns of the same episode, so both die out faster than by the outcome alone
(rewards at the ends of turns: MT-PPO, arXiv 2505.11821; the weights are ours). Expected: both
rarer, exact match equal or up. Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_turn_penalties.py \
        --workdir=runs/demo_turn_penalties
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.warm_start.phases = ()
    config.reward.terms = (("em", 1.0), ("repeated_queries", -0.1), ("invalid_segments", -0.1))
    return config
