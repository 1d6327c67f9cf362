"""Parts of a decode step on a CPU, each against the obvious way to write it.

    python benchmarks/decoding.py [--slots=64 --positions=256 --vocabulary=49152 --runs=15]

Attention of one token a slot over the cache: `attend_with_one_query`, keys in blocks with positions
last, against jax.nn.dot_product_attention over a cache with positions before heads, and against
the same two products over keys that are not cut into blocks. Products with the weights of a
layer: activations as columns against activations as rows. Sampling: by the inverse of the
cumulative distribution against the Gumbel trick of jax.random.categorical. The sides in turn,
medians and their ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
from timing import compare

from sr1_jax.models.attention import attend_with_one_query
from sr1_jax.rollout.sampling import sample


def attention_sides(args) -> dict[str, Callable]:
    rng = jax.random.split(jax.random.key(0), 3)
    slots, positions, heads, kv_heads, size, block = args.slots, args.positions, 9, 3, 64, 32
    q = jax.random.normal(rng[0], (slots, 1, heads, size))
    k, v = (jax.random.normal(key, (slots, positions, kv_heads, size)) for key in rng[1:])
    last_S = jnp.full(slots, positions - 20)
    visible = jnp.arange(positions)[None] <= last_S[:, None]
    q_SKGE = q.reshape(slots, kv_heads, -1, size)
    k_SKEX, v_SKXE = k.transpose(0, 2, 3, 1).copy(), v.swapaxes(1, 2).copy()
    k_SKNEC = k_SKEX.reshape(slots, kv_heads, size, -1, block).swapaxes(2, 3).copy()

    @jax.jit
    def in_one_piece(q_SKGE, k_SKEX, v_SKXE):
        scores = jnp.matmul(q_SKGE * size**-0.5, k_SKEX)
        scores = jnp.where(visible[:, None, None], scores, -1e30)
        return jnp.matmul(jax.nn.softmax(scores, axis=-1), v_SKXE)

    mask = visible[:, None, None]
    library = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask))
    ours = jax.jit(lambda q, k, v: attend_with_one_query(q, k, v, last_S))
    return {
        "jax.nn.dot_product_attention": lambda: library(q, k, v),
        "keys in one piece": lambda: in_one_piece(q_SKGE, k_SKEX, v_SKXE),
        "attend_with_one_query": lambda: ours(q_SKGE, k_SKNEC, v_SKXE),
    }


def product_sides(args) -> dict[str, Callable]:
    """Eight feed-forward inputs of SmolLM2's width, one after the other: no weight stays in the
    processor's cache."""
    width, outputs, layers = 576, 1536, 8
    keys = jax.random.split(jax.random.key(0), layers)
    weights_DF = [jax.random.normal(key, (width, outputs)) for key in keys]
    weights_FD = [weight_DF.T.copy() for weight_DF in weights_DF]
    x_SD = jax.random.normal(jax.random.key(1), (args.slots, width))
    x_DS = x_SD.T.copy()
    rows = jax.jit(lambda x_SD, weights: [x_SD @ weight_DF for weight_DF in weights])
    columns = jax.jit(lambda x_DS, weights: [weight_FD @ x_DS for weight_FD in weights])
    return {
        "activations as rows": lambda: rows(x_SD, weights_DF),
        "activations as columns": lambda: columns(x_DS, weights_FD),
    }


def sampling_sides(args) -> dict[str, Callable]:
    logits = jax.random.normal(jax.random.key(0), (args.slots, args.vocabulary))
    keys = jax.random.split(jax.random.key(1), args.slots)

    @jax.jit
    def gumbel(logits_SV, keys_S):
        token_S = jax.vmap(jax.random.categorical)(keys_S, logits_SV)
        logp_SV = jax.nn.log_softmax(logits_SV, axis=-1)
        return token_S, jnp.take_along_axis(logp_SV, token_S[:, None], axis=-1)

    columns = logits.T.copy()
    ours = jax.jit(lambda x, keys: sample(x, keys, temperature=1.0, top_k=0, top_p=1.0))
    return {
        "jax.random.categorical": lambda: gumbel(logits, keys),
        "inverse of the cumulative distribution": lambda: ours(columns, keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(slots=64, positions=256, vocabulary=49_152, runs=15).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    compare(attention_sides(args), args.runs, "attention, ")
    compare(product_sides(args), args.runs, "products, ")
    compare(sampling_sides(args), args.runs, "sampling, ")


if __name__ == "__main__":
    main()
