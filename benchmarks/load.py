"""Time and memory of `load_pretrained` against a plain read of the same files.

    python benchmarks/load.py [--layers=28 --width=1536 --runs=3] [--param_dtype=bfloat16]

Writes a folder of random bfloat16 weights of the shape of Qwen2.5-1.5B in several shards, then
loads it in a new process for each run, in turn with one that reads the bytes into arrays with
`numpy.fromfile`. Prints medians, their ratio, and the peak resident memory above that of the
interpreter with JAX, against the size of the result. The files stay in the page cache, so both
sides read from memory. Beside it stands what a read takes that keeps nothing: it fills the same
16 MiB again and again, and is spared the fresh memory that a result needs.
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
from byte_tokenizer import EOS_ID, byte_backend


def write_folder(folder: Path, args) -> None:
    """config.json, tokenizer.json and shards of at most a gigabyte."""
    config = {
        "model_type": "qwen2", "vocab_size": args.vocabulary, "hidden_size": args.width,
        "intermediate_size": args.ff, "num_hidden_layers": args.layers, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": EOS_ID,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    byte_backend().save(str(folder / "tokenizer.json"))
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


def load_side(folder: Path, param_dtype: str) -> dict:
    """`load_pretrained` of the folder."""
    import jax
    from flax import nnx

    from sr1_jax.models import load_pretrained

    jax.numpy.zeros(1).block_until_ready()
    again = prepare(folder)
    before = resident_bytes("VmRSS")
    began = time.perf_counter()
    model, _ = load_pretrained(folder, param_dtype=param_dtype)
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - began
    peak = resident_bytes("VmHWM") - before
    size = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    return {"seconds": seconds, "again": again, "peak": peak, "size": size}


def read_side(folder: Path) -> dict:
    """The bytes of all shards, each in an array of its own."""
    again = prepare(folder)
    began = time.perf_counter()
    kept = [np.fromfile(file, np.uint8) for file in shards(folder)]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "again": again, "size": sum(x.nbytes for x in kept)}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def prepare(folder: Path) -> float:
    """Makes all runs start alike; returns the seconds of a read into memory that is used again.

    All files are in the page cache then. So much memory has been touched as the result needs: a
    virtual machine may get it from its host only then, at a tenth of the speed. And the peak
    counts from here on.
    """
    began = time.perf_counter()
    buffer = bytearray(1 << 24)
    for file in shards(folder):
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in shards(folder))
    np.empty(int(1.2 * size), np.uint8)[::4096] = 1
    Path("/proc/self/clear_refs").write_text("5")
    return seconds


def resident_bytes(key: str) -> int:
    """VmRSS, now, or VmHWM, the most so far. Not ru_maxrss: that starts as the parent's."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("load", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--param_dtype", default="bfloat16")
    for name, default in dict(layers=28, width=1536, ff=8960, vocabulary=151_936, runs=3).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.side:
        folder = Path(args.folder)
        found = load_side(folder, args.param_dtype) if args.side == "load" else read_side(folder)
        return print(json.dumps(found))
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
    again = statistics.median(r["again"] for found in results.values() for r in found)
    peak = statistics.median(r["peak"] for r in results["load"])
    size = results["load"][0]["size"]
    print(
        f"load {load:.2f} s; plain read {read:.2f} s, ratio {load / read:.2f}; plain read into "
        f"memory that is used again {again:.2f} s, ratio {load / again:.2f}"
    )
    print(
        f"peak {peak / 2**30:.2f} GiB for a result of {size / 2**30:.2f}: {peak / size:.2f} times"
    )


if __name__ == "__main__":
    main()
