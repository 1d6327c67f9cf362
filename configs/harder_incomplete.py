"""An incomplete corpus: a tenth of the passages is missing, in training and evaluation alike.

Hypothesis: what cannot be found cannot be learned or answered, so that a complete corpus is worth
more than the share of facts that it adds (arXiv 2605.27881 gains two to six points by completing
one). Expected: lower by about the share of questions that lack a passage, and not by much more.

    python -m sr1_jax.train --config=configs/harder_incomplete.py --workdir=runs/harder_incomplete
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.warm_start.phases = ()
    config.retrieval.missing = 0.1
    return config
