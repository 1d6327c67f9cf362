"""Time and memory of `load_pretrained` against a plain read of the same files.

    python benchmarks/load.py [--layers=28 --width=1536 --runs=3] [--param_dtype=bfloat16]

Writes a folder of random bfloat16 weights of the shape of Qwen2.5-1.5B in several shards, then
loads it in a new process for each run, in turn with one that only reads the bytes. Prints medians,
their ratio, and the peak resident memory above that of the interpreter with JAX, against the size
of the result. The files stay in the page cache, so both sides read from memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ml_dtypes
import numpy as np
import safetensors.numpy
import tokenizers


def write_folder(folder: Path, args) -> None:
    """config.json, tokenizer.json and shards of at most a gigabyte."""
    config = {
        "model_type": "qwen2", "vocab_size": args.vocabulary, "hidden_size": args.width,
        "intermediate_size": args.ff, "num_hidden_layers": args.layers, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 256,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {char: number for number, char in enumerate(sorted(alphabet))} | {"<eos>": 256}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    width, kv = args.width, args.width // 12 * 2
    shapes = {"model.embed_tokens.weight": (args.vocabulary, width), "model.norm.weight": (width,)}
    for layer in range(args.layers):
        of_layer = {
            "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (width, width), "self_attn.q_proj.bias": (width,),
            "self_attn.k_proj.weight": (kv, width), "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, width), "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (width, width), "mlp.gate_proj.weight": (args.ff, width),
            "mlp.up_proj.weight": (args.ff, width), "mlp.down_proj.weight": (width, args.ff),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    rng = np.random.default_rng(0)
    shard: dict[str, np.ndarray] = {}
    count = 0
    for number, (name, shape) in enumerate(shapes.items(), 1):
        shard[name] = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        if sum(x.nbytes for x in shard.values()) > 8e8 or number == len(shapes):
            safetensors.numpy.save_file(shard, folder / f"model-{count}.safetensors")
            shard.clear()
            count += 1
    print(f"{count} shards of random weights written", flush=True)


def load_side(folder: Path, param_dtype: str) -> None:
    import jax
    from flax import nnx

    from sr1_jax.models import load_pretrained

    jax.numpy.zeros(1).block_until_ready()
    before = resident_bytes("VmRSS")
    began = time.perf_counter()
    model, _ = load_pretrained(folder, param_dtype=param_dtype)
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - began
    peak = resident_bytes("VmHWM") - before
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    print(json.dumps({"seconds": seconds, "peak": peak, "size": size}))


def resident_bytes(key: str) -> int:
    """VmRSS, now, or VmHWM, the most so far. Not ru_maxrss: that starts as the parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def read_side(folder: Path) -> None:
    """Every byte of every shard, into memory that is used again."""
    began = time.perf_counter()
    buffer = bytearray(1 << 24)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    print(json.dumps({"seconds": time.perf_counter() - began}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("load", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--param_dtype", default="bfloat16")
    for name, default in dict(layers=28, width=1536, ff=8960, vocabulary=151_936, runs=3).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.side == "load":
        return load_side(Path(args.folder), args.param_dtype)
    if args.side == "read":
        return read_side(Path(args.folder))
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), args)
        results: dict[str, list[dict]] = {"load": [], "read": []}
        for _ in range(args.runs):
            for side, found in results.items():
                command = [sys.executable, __file__, f"--side={side}", f"--folder={name}"]
                command.append(f"--param_dtype={args.param_dtype}")
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(out.splitlines()[-1]))
                print(side, found[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)
    load, read = (statistics.median(r["seconds"] for r in found) for found in results.values())
    peak = statistics.median(r["peak"] for r in results["load"])
    size = results["load"][0]["size"]
    print(f"load {load:.2f} s, plain read {read:.2f} s, ratio {load / read:.2f}")
    print(
        f"peak {peak / 2**30:.2f} GiB for a result of {size / 2**30:.2f}: {peak / size:.2f} times"
    )


if __name__ == "__main__":
    main()
