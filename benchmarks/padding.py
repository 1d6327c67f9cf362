"""How much of what the learner computes is padding, by length buckets and rows of a micro-batch.

    python benchmarks/padding.py [--context=4096] [--batch=512] [--minibatch=256]

Made-up episodes of a search agent: a prompt of some 180 tokens, 2 to 4 turns of log-normal length,
each with an observation of 500 tokens, and an answer. For each setting the share of
padding, the mean over sixteen mini-batches and the worst, and how many lengths occur.
"""

from __future__ import annotations

import argparse

import numpy as np

from sr1_jax.rl.micro_batches import padding_share, plan_micro_batches

OBSERVATION_TOKENS, SEGMENT_TOKENS = 500, 500


def episode_tokens(rng: np.random.Generator, context: int) -> int:
    """Length of an episode."""

    def log_normal(median: float, sigma: float, low: int, high: int) -> int:
        return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))

    tokens = log_normal(180, 0.4, 60, 1024)
    for _ in range(rng.integers(2, 5)):
        tokens += log_normal(120, 0.7, 10, SEGMENT_TOKENS) + OBSERVATION_TOKENS
    return min(tokens + log_normal(80, 0.7, 10, SEGMENT_TOKENS), context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(context=4096, batch=512, minibatch=256).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print("rows  buckets every  padding  worst  lengths")
    batches = []
    for _ in range(8):
        tokens_B = np.array([episode_tokens(rng, args.context) for _ in range(args.batch)])
        batches.append((np.arange(args.context)[None] < tokens_B[:, None]).astype(np.int8))
    for size in (8, 16, 32, 64):
        for step in (args.context, 512, 256, 128):
            shares, lengths = [], set()
            for mask_BT in batches:
                for rows in np.split(np.arange(args.batch), args.batch // args.minibatch):
                    buckets = range(step, args.context + 1, step)
                    plan = plan_micro_batches(mask_BT, rows, size=size, buckets=buckets)
                    shares.append(padding_share(mask_BT, plan))
                    lengths |= {part.length for part in plan}
            print(
                f"{size:4}  {step:13}  {np.mean(shares):7.1%}  {max(shares):5.1%}  {len(lengths):7}"
            )


if __name__ == "__main__":
    main()
