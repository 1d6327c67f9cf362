"""Half of the passages are replaced by random ones.

Hypothesis: a weaker retriever makes training less stable and the policy end lower; it learns to
ask again (arXiv 2505.15117: stronger search engines train stabler).

    python -m sr1_jax.train --config=configs/harder_noisy_retriever.py \
        --workdir=runs/harder_noisy_retriever
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.retrieval.noise.start = 0.5
    config.retrieval.noise.evaluation = 0.5
    return config
