"""A shorter supervised start: half of the steps of each phase.

Hypothesis: a policy that reads worse starts reinforcement learning lower and ends lower; what
base against instruct models are to the paper, which start apart and end close (arXiv 2503.09516,
section 5.2).

    python -m sr1_jax.train --config=configs/harder_short_start.py --workdir=runs/harder_short_start
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.warm_start.phases = tuple(
        phase | {"steps": phase["steps"] // 2, "evaluate_at": ()}
        for phase in map(dict, config.warm_start.phases)
    )
    return config
