"""Tunix's sampler for `benchmarks/rollout.py tunix`; runs in an environment with google-tunix.

    python benchmarks/tunix_sampler.py REQUEST.json

REQUEST holds the shape, the prompts as token ids and the number of new tokens. For each line
read, one call of the sampler over all prompts, and an answer with the "tokens" it sampled.
"""

import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
from flax import nnx
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as qwen2


class Numbers:
    """A tokenizer of numbers: "5 17" is [5, 17]."""

    def encode(self, text, **_):
        return [int(number) for number in text.split()]

    def decode(self, ids, **_):
        return " ".join(str(int(number)) for number in ids)

    def bos_id(self):
        return None

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


def model_config(shape):
    """Tunix's settings of a decoder of our shape."""
    return qwen2.ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["width"],
        hidden_dim=shape["ff_width"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=int(shape["rope_theta"]),
        norm_eps=shape["norm_eps"],
        use_tied_embedding=True,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )


def answer(**values):
    """Tells the other side."""
    print("answer", json.dumps(values), flush=True)


def main(path):
    with open(path) as file:
        request = json.load(file)
    prompts, new = request["prompts"], request["new"]
    config = model_config(request["shape"])
    cache = sampler_lib.CacheConfig(
        cache_size=len(prompts[0]) + new,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    sampler = sampler_lib.Sampler(qwen2.Qwen2(config, rngs=nnx.Rngs(0)), Numbers(), cache)
    texts = [" ".join(map(str, prompt)) for prompt in prompts]
    for seed, _ in enumerate(sys.stdin):
        out = sampler(
            texts,
            max_generation_steps=new,
            max_prompt_length=len(prompts[0]),
            eos_tokens=[config.vocab_size + 1],  # never sampled: no row stops early
            temperature=1.0,
            top_p=1.0,
            seed=seed,
        )
        answer(tokens=sum(len(ids) for ids in out.tokens))


if __name__ == "__main__":
    main(sys.argv[1])
