"""Causal attention on a CPU: plain batched products against jax.nn.dot_product_attention.

    python benchmarks/attention.py [--batch=48 --length=144 --heads=4 --kv_heads=2 --size=32]

Forward and backward in one jitted call each, the two in turn, medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

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

    sides = {
        "jax.nn.dot_product_attention": gradient(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
        ),
        "causal_by_matmul": gradient(causal_by_matmul),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(args.runs + 2):
        for name, call in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(call(q, k, v))
            if run >= 2:  # compilation and warm-up
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: median {median * 1e3:.1f} ms of {args.runs}")
    library, ours = medians.values()
    print(f"ratio {library / ours:.2f}")


if __name__ == "__main__":
    main()
