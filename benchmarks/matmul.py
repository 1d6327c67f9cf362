"""Products that multiply in bfloat16 against those in float32, on a CPU: base.matmul_dtype.

    python benchmarks/matmul.py [--layers=6 --batch=4 --length=448 --slots=48 --runs=5]

Shapes of SmolLM2-135M, fewer layers: the gradient of adapters and that of all weights over whole
sequences, and eight decode steps of all slots over a cache. Both sides in turn, medians, ratios.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from timing import compare

from sr1_jax.models.cached_forward import forward_cached, next_token_logits
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.lora import LoraConfig
from sr1_jax.models.matmul import MATMUL_DTYPES
from sr1_jax.models.serving import KVCache, serving_params
from sr1_jax.rl.token_logp import token_logp

SHAPE = DecoderConfig(
    vocab_size=49_152, width=576, layers=6, heads=9, kv_heads=3, head_dim=64, ff_width=1536
)


def gradient_of(config: DecoderConfig, batch: int, length: int):
    """The gradient of what is trained, of the log-probabilities of every fourth token."""
    graph, trained, rest = nnx.split(
        Decoder(config, rngs=nnx.Rngs(0)), nnx.LoRAParam if config.lora else nnx.Param, ...
    )
    ids_BT = jax.random.randint(jax.random.key(0), (batch, length), 0, config.vocab_size)
    wanted_BT = jnp.broadcast_to(jnp.arange(length) % 4 == 3, (batch, length))

    @jax.jit
    def run(trained, rest):
        def loss(trained):
            model = nnx.merge(graph, trained, rest)
            return token_logp(model, ids_BT, wanted_BT, max_wanted=length // 4)[0].sum()

        return jax.grad(loss)(trained)

    return lambda: run(trained, rest)


def decoding(config: DecoderConfig, slots: int, positions: int = 512, steps: int = 8):
    """Greedy tokens of all slots, one after the other."""
    params = serving_params(config, nnx.state(Decoder(config, rngs=nnx.Rngs(0))))

    @jax.jit
    def run(params, cache):
        def step(carry, at):
            ids_B, cache = carry
            where_B1 = jnp.full((slots, 1), at)
            hidden_DB1, cache = forward_cached(config, params, ids_B[:, None], where_B1, cache)
            logits_VB = next_token_logits(config, params, hidden_DB1[..., 0])
            return (logits_VB.argmax(axis=0), cache), None

        start = jnp.zeros(slots, jnp.int32), cache
        return jax.lax.scan(step, start, positions // 2 + jnp.arange(steps))[0][0]

    cache = KVCache.empty(config, slots, positions)
    return lambda: run(params, cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(layers=6, batch=4, length=448, slots=48, runs=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    shape = dataclasses.replace(SHAPE, layers=args.layers)
    parts = {
        "gradient of adapters": (
            lambda config: gradient_of(config, args.batch, args.length),
            dataclasses.replace(shape, lora=LoraConfig(4)),
        ),
        "gradient of all weights": (
            lambda config: gradient_of(config, args.batch, args.length), shape
        ),
        "decoding": (lambda config: decoding(config, args.slots), shape),
    }  # fmt: skip
    names = {"same": "float32", "bfloat16": "bfloat16"}
    for part, (make, config) in parts.items():
        print(part)
        sides = {
            names[dtype]: make(dataclasses.replace(config, matmul_dtype=dtype))
            for dtype in MATMUL_DTYPES
        }
        compare(sides, args.runs)


if __name__ == "__main__":
    main()
