"""PPO on the demo with the published retrieval reward beside that of the format.

Hypothesis: paying a wrong but well-formed response another 0.1 for having found a passage with the
answer helps little or not at all, since the outcome already asks for it (arXiv 2505.15117).
Expected: more searches that find gold than with demo_format_reward, exact match about equal.
Starts from the base policy of runs/demo.

    python -m sr1_jax.train --config=configs/demo_retrieval_reward.py \
        --workdir=runs/demo_retrieval_reward
"""

from configs import demo_format_reward


def get_config():
    config = demo_format_reward.get_config()
    config.reward.retrieval_weight = 0.1
    return config
