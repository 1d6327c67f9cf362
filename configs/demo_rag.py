"""RAG with the demo's base policy: one retrieval with the question itself, no training.

python -m sr1_jax.train --config=configs/demo_rag.py --workdir=runs/demo_rag
"""

from configs import demo_direct


def get_config():
    config = demo_direct.get_config()
    config.method = "rag"
    return config
