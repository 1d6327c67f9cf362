"""How much of what the learner computes is padding: by length buckets, and packed.

    python benchmarks/padding.py [--context=4096] [--batch=512] [--minibatch=256] [--preset=…]

Made-up episodes of a search agent: a prompt of some 180 tokens, 2 to 4 turns of log-normal length,
each with an observation of 500 tokens, and an answer. For each setting and number of rows in a
micro-batch: the share of padding in computed tokens, the mean over sixteen mini-batches and the
worst; the FLOPs of the layers with attention, which grows with the length of a row, over those of
the episodes without any padding, for the preset's shape; how many lengths occur; and how long a
mini-batch takes to plan.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from sr1_jax.models.shapes import preset_config
from sr1_jax.rl.micro_batches import padding_share, plan_micro_batches
from sr1_jax.rl.settings import default_config

OBSERVATION_TOKENS, SEGMENT_TOKENS = 500, 500


def episode_tokens(rng: np.random.Generator, context: int) -> int:
    """Length of an episode."""

    def log_normal(median: float, sigma: float, low: int, high: int) -> int:
        return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))

    tokens = log_normal(180, 0.4, 60, 1024)
    for _ in range(rng.integers(2, 5)):
        tokens += log_normal(120, 0.7, 10, SEGMENT_TOKENS) + OBSERVATION_TOKENS
    return min(tokens + log_normal(80, 0.7, 10, SEGMENT_TOKENS), context)


def layer_flops(tokens_R: np.ndarray, preset: str) -> float:
    """FLOPs of rows of these lengths in a layer: 2 a parameter and token, and causal attention."""
    shape = preset_config(preset)
    heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    parameters = shape.width * (heads + 3 * shape.ff_width)
    tokens_R = tokens_R.astype(float)
    attention = 2 * shape.heads * shape.head_dim * tokens_R**2
    return float((2 * parameters * tokens_R + attention).sum())


def settings(context: int) -> dict[str, dict]:
    """What is compared, by name."""
    buckets = {
        f"buckets every {step}": dict(length_buckets=tuple(range(step, context + 1, step)))
        for step in (context, context // 4, context // 8, context // 16, context // 32)
    }
    packed = {
        f"packed, {name}": dict(packing=True, length_buckets=lengths, row_lengths=rows)
        for name, lengths, rows in (
            ("usual rows", tuple(range(context // 16, context + 1, context // 16)), ()),
            (
                "usual rows of four buckets",
                tuple(range(context // 4, context + 1, context // 4)),
                (),
            ),
            ("one length", (context,), (context,)),
        )
    }
    return buckets | packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(context=4096, batch=512, minibatch=256).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--preset", default="qwen2.5-7b", help="shape for the FLOPs")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'rows':4}  {'setting':34}  padding  worst  FLOPs  lengths  ms")
    batches = []
    for _ in range(8):
        tokens_B = np.array([episode_tokens(rng, args.context) for _ in range(args.batch)])
        batches.append((np.arange(args.context)[None] < tokens_B[:, None]).astype(np.int8))
    minibatches = np.split(np.arange(args.batch), args.batch // args.minibatch)
    needed = sum(layer_flops(trains_BT.sum(axis=1), args.preset) for trains_BT in batches)
    for size in (8, 16, 32, 64):
        for name, changes in settings(args.context).items():
            config = default_config()
            config.update(changes | dict(micro_batch=size))
            shares, lengths, seconds, flops = [], set(), 0.0, 0.0
            for trains_BT in batches:
                for rows in minibatches:
                    began = time.perf_counter()
                    plan = plan_micro_batches(trains_BT, rows, config)
                    seconds += time.perf_counter() - began
                    shares.append(padding_share(trains_BT, plan))
                    lengths |= {part.length for part in plan}
                    flops += sum(
                        layer_flops(np.full(size, part.length), args.preset) for part in plan
                    )
            print(
                f"{size:4}  {name:34}  {np.mean(shares):7.1%}  {max(shares):5.1%}  "
                f"{flops / needed:5.2f}  {len(lengths):7}  {seconds / len(shares) * 1e3:.0f}"
            )


if __name__ == "__main__":
    main()
