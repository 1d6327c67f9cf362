"""The published retrieval reward beside that of the format.

Hypothesis: paying a wrong but well-formed response another 0.1 for having found a passage with the
answer helps little or not at all, since the outcome already asks for it (arXiv 2505.15117).
Expected: more searches that find gold than with harder_format_reward, exact match about equal.

    python -m sr1_jax.train --config=configs/harder_retrieval_reward.py \
        --workdir=runs/harder_retrieval_reward
"""

from configs import harder_format_reward


def get_config():
    config = harder_format_reward.get_config()
    config.reward.retrieval_weight = 0.1
    return config
