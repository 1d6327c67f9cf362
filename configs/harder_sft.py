"""Supervised fine-tuning of the harder world's base policy on the traces whose answer is right.

Hypothesis: imitation makes the policy search, read and say what is not known, and cannot bring what
no search of a trace shows: going on after the first fact, and comparing two.

    python -m sr1_jax.train --config=configs/harder_sft.py --workdir=runs/harder_sft
"""

from configs import harder


def get_config():
    config = harder.get_config()
    config.base.workdir = "runs/harder"
    config.steps = 0
    config.warm_start.phases = (
        dict(
            name="good traces",
            traces=12_000,
            mix=dict(lazy=0.4, explore=1.0),
            only_correct=True,
            steps=300,
            learning_rate=1e-3,
        ),
    )
    return config
