"""Every passage is a random one.

Hypothesis: nothing that comes back helps, so the policy stops searching (arXiv 2505.15117: with a
random retriever search dies within some 150 steps).

    python -m sr1_jax.train --config=configs/harder_random_retriever.py \
        --workdir=runs/harder_random_retriever
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.retrieval.noise.start = 1.0
    config.retrieval.noise.evaluation = 1.0
    return config
