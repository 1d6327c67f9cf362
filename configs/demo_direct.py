"""Direct answers of the demo's base policy: no search, no training.

python -m sr1_jax.train --config=configs/demo_direct.py --workdir=runs/demo_direct
"""

from configs import demo_r1


def get_config():
    config = demo_r1.get_config()
    config.steps = 0
    return config
