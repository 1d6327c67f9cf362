"""Search-R1 on Llama 3.1 and 3.2, with the published hyper-parameters (arXiv 2503.09516).

Hypothesis: the paper's Llama-3.2-3B learns to search as Qwen2.5-3B does.

    python -m sr1_jax.train --config=configs/llama3.py:size=3b,algo=ppo,variant=base \
        --workdir=runs/llama --config.base.path=Llama-3.2-3B \
        --config.data.questions=train.jsonl --config.data.corpus=corpus.jsonl.gz

size: 1b, 3b (of Llama 3.2) or 8b (of Llama 3.1); algo: ppo or grpo; variant: base or instruct.
Without an argument, --config=configs/llama3.py is size=3b,algo=ppo,variant=base.
"""

from sr1_jax.training.published import Size, published_config

SIZES = {
    "1b": Size("llama3.2-1b", tensor=1, micro_batch=16, slots=64),
    "3b": Size("llama3.2-3b", tensor=2, micro_batch=16, slots=128),
    "8b": Size("llama3.1-8b", tensor=4, micro_batch=32, slots=256),
}


def get_config(argument=""):
    return published_config(argument, SIZES, default_size="3b")
