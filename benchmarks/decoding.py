"""Two parts of a decode step on a CPU, each against the obvious way to write it.

    python benchmarks/decoding.py [--slots=64 --positions=256 --vocabulary=49152 --runs=15]

Attention of one token a slot over the cache: `cached_attention`, keys with positions last, against
jax.nn.dot_product_attention over a cache with positions before heads. Sampling: by the inverse of
the cumulative distribution against the Gumbel trick of jax.random.categorical. The two sides in
turn, medians and their ratio.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from timing import compare

from sr1_jax.models.attention import cached_attention
from sr1_jax.rollout.sampling import sample


def attention_sides(args) -> dict[str, Callable]:
    keys = jax.random.split(jax.random.key(0), 3)
    slots, positions, heads, kv_heads, size = args.slots, args.positions, 9, 3, 64
    q = jax.random.normal(keys[0], (slots, 1, heads, size))
    k, v = (jax.random.normal(key, (slots, positions, kv_heads, size)) for key in keys[1:])
    last = jnp.full((slots, 1), positions - 20)
    visible = (jnp.arange(positions)[None] <= last)[:, None, None]
    k_last, v_last = k.transpose(0, 2, 3, 1).copy(), v.swapaxes(1, 2).copy()
    library = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=visible))
    ours = jax.jit(lambda q, k, v: cached_attention(q, k, v, last))
    return {
        "jax.nn.dot_product_attention": lambda: library(q, k, v),
        "cached_attention": lambda: ours(q, k_last, v_last),
    }


def sampling_sides(args) -> dict[str, Callable]:
    logits = jax.random.normal(jax.random.key(0), (args.slots, args.vocabulary))
    keys = jax.random.split(jax.random.key(1), args.slots)

    @jax.jit
    def gumbel(logits_SV, keys_S):
        token_S = jax.vmap(jax.random.categorical)(keys_S, logits_SV)
        logp_SV = jax.nn.log_softmax(logits_SV, axis=-1)
        return token_S, jnp.take_along_axis(logp_SV, token_S[:, None], axis=-1)

    ours = jax.jit(lambda x, keys: sample(x, keys, temperature=1.0, top_k=0, top_p=1.0))
    return {
        "jax.random.categorical": lambda: gumbel(logits, keys),
        "inverse of the cumulative distribution": lambda: ours(logits, keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(slots=64, positions=256, vocabulary=49_152, runs=15).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    compare(attention_sides(args), args.runs, "attention, ")
    compare(sampling_sides(args), args.runs, "sampling, ")


if __name__ == "__main__":
    main()
