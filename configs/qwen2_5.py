"""Search-R1 on Qwen2.5, with the published hyper-parameters (arXiv 2503.09516).

Hypothesis: with the mask on all that is retrieved, PPO brings Qwen2.5-7B base from .304 (RAG) to
.431 exact match on average over seven question sets, and GRPO to .350.

    python -m sr1_jax.train --config=configs/qwen2_5.py:size=7b,algo=ppo,variant=base \
        --workdir=runs/qwen --config.base.path=Qwen2.5-7B \
        --config.data.folder=/data/flashrag --config.data.questions=nq_hotpotqa \
        --config.data.dev=nq,hotpotqa --config.data.corpus=wiki-18.jsonl.gz

size: 0.5b, 1.5b, 3b, 7b, 14b, 32b or 72b; algo: ppo or grpo; variant: base or instruct. Without
an argument, --config=configs/qwen2_5.py is size=7b,algo=ppo,variant=base.
"""

from sr1_jax.training.published import Size, published_config

# As plans for v5e:8x8 (7b) and v5p:4x4x4 (72b) have room for; smaller slices want remat "full".
SIZES = {
    "0.5b": Size("qwen2.5-0.5b", tensor=1, micro_batch=8, slots=64),
    "1.5b": Size("qwen2.5-1.5b", tensor=1, micro_batch=16, slots=64),
    "3b": Size("qwen2.5-3b", tensor=2, micro_batch=16, slots=128),
    "7b": Size("qwen2.5-7b", tensor=4, micro_batch=32, slots=256, remat="dots"),
    "14b": Size("qwen2.5-14b", tensor=4, micro_batch=32, slots=256),
    "32b": Size("qwen2.5-32b", tensor=4, micro_batch=32, slots=256),
    "72b": Size("qwen2.5-72b", tensor=4, micro_batch=32, slots=512, remat="dots"),
}


def get_config(argument=""):
    return published_config(argument, SIZES, default_size="7b")
