"""Causal attention on a CPU: plain batched products in blocks of queries, the same in one block,
and jax.nn.dot_product_attention.

    python benchmarks/attention.py [--batch=48 --length=144 --heads=4 --kv_heads=2 --size=32]

Forward and backward in one jitted call each, the three in turn, medians and their ratios.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
from timing import compare

from sr1_jax.models.attention import causal_by_matmul


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(batch=48, length=144, heads=4, kv_heads=2, size=32, runs=15).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (args.batch, args.length, heads, args.size))
        for key, heads in zip(keys, (args.heads, args.kv_heads, args.kv_heads))
    )

    def gradient(attend):
        return jax.jit(jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v) ** 2), argnums=(0, 1, 2)))

    library = gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
    ours = gradient(causal_by_matmul)
    whole = gradient(lambda q, k, v: causal_by_matmul(q, k, v, most_queries=args.length))
    sides = {
        "jax.nn.dot_product_attention": lambda: library(q, k, v),
        "causal_by_matmul in one block": lambda: whole(q, k, v),
        "causal_by_matmul": lambda: ours(q, k, v),
    }
    compare(sides, args.runs)


if __name__ == "__main__":
    main()
