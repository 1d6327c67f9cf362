"""What another allocator gains where JAX trains on a CPU.

Buffers of a step are large, and glibc gives each back to the system, which has to clear the pages
of the next.

    python benchmarks/allocator.py --preload=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2

The gradient of adapters of SmolLM2-135M's shape, fewer layers, in processes of their own: with the
allocator of the system and with the library, in turns. Printed are the medians of seconds and of
page faults a gradient, the most memory, and the ratio. jemalloc keeps freed pages for a minute, if
MALLOC_CONF does not say otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

_CONF = "dirty_decay_ms:60000,muzzy_decay_ms:0"


def measure(layers: int, batch: int, length: int, runs: int) -> list[dict[str, float]]:
    """Seconds, page faults and the peak so far in MiB, of each of so many gradients."""
    import jax
    from matmul import SHAPE, gradient_of

    from sr1_jax.models.lora import LoraConfig

    config = dataclasses.replace(SHAPE, layers=layers, lora=LoraConfig(4), matmul_dtype="bfloat16")
    gradient = gradient_of(config, batch, length)
    rows = []
    for _ in range(runs + 1):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        jax.block_until_ready(gradient())
        used = resource.getrusage(resource.RUSAGE_SELF)
        rows.append({
            "seconds": time.perf_counter() - began,
            "faults": used.ru_minflt - faults,
            "MiB": used.ru_maxrss / 1024,
        })  # fmt: skip
    return rows[1:]  # the first is compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preload", required=True, type=Path)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=448)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = arguments.layers, arguments.batch, arguments.length, arguments.runs
    if arguments.measure:
        print(json.dumps(measure(*sizes)))
        return
    if not arguments.preload.is_file():
        parser.error(f"--preload={arguments.preload}: there is no such file")
    conf = os.environ.get("MALLOC_CONF", _CONF)
    library = {"LD_PRELOAD": str(arguments.preload), "MALLOC_CONF": conf}
    sides = {"system": {}, arguments.preload.name: library}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, more in sides.items():
            output = subprocess.run(
                [sys.executable, *sys.argv, "--measure"], env=os.environ | more, check=True,
                stdout=subprocess.PIPE, text=True,
            ).stdout  # fmt: skip
            found[side] += json.loads(output.splitlines()[-1])
    medians = {}
    for side, rows in found.items():
        medians[side] = statistics.median(row["seconds"] for row in rows)
        faults = statistics.median(row["faults"] for row in rows)
        peak = max(row["MiB"] for row in rows)
        print(f"{side}: {medians[side]:.2f} s, {faults:,.0f} page faults, {peak:,.0f} MiB at most")
    system, other = medians.values()
    print(f"ratio {system / other:.2f}")


if __name__ == "__main__":
    main()
