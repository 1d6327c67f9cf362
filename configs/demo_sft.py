"""Supervised fine-tuning of the demo's base policy on the traces whose answer is right.

Hypothesis: imitation of good traces brings back single searches, and cannot bring what no trace
shows: a second search for the second hop.

    python -m sr1_jax.train --config=configs/demo_sft.py --workdir=runs/demo_sft
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.base.workdir = "runs/demo"
    config.steps = 0
    config.warm_start.phases = (
        dict(
            name="good traces",
            traces=12_000,
            mix=dict(lazy=0.6),
            only_correct=True,
            steps=300,
            learning_rate=1e-3,
        ),
    )
    return config
