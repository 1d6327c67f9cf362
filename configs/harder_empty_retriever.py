"""Searches bring nothing back.

Hypothesis: search dies faster than with random passages, and what is left is guessing.

    python -m sr1_jax.train --config=configs/harder_empty_retriever.py \
        --workdir=runs/harder_empty_retriever
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.retrieval.kind = "empty"
    return config
