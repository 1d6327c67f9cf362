"""Search-R1 on Qwen3 (dense), with the published hyper-parameters (arXiv 2503.09516).

Hypothesis: a newer and smaller base learns the same search; elsewhere Qwen3-1.7B goes from .05
to .41 on Natural Questions.

    python -m sr1_jax.train --config=configs/qwen3.py:size=4b,algo=ppo,variant=base \
        --workdir=runs/qwen3 --config.base.path=Qwen3-4B-Base \
        --config.data.questions=train.jsonl --config.data.corpus=corpus.jsonl.gz

size: 0.6b, 1.7b, 4b or 8b; algo: ppo or grpo; variant: base or instruct. Without an argument,
--config=configs/qwen3.py is size=4b,algo=ppo,variant=base.
"""

from sr1_jax.training.published import Size, published_config

SIZES = {
    "0.6b": Size("qwen3-0.6b", tensor=1, micro_batch=8, slots=64),
    "1.7b": Size("qwen3-1.7b", tensor=1, micro_batch=16, slots=64),
    "4b": Size("qwen3-4b", tensor=4, micro_batch=16, slots=128),
    "8b": Size("qwen3-8b", tensor=4, micro_batch=32, slots=256),
}


def get_config(argument=""):
    return published_config(argument, SIZES, default_size="4b")
