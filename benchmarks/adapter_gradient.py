"""A side of allocator.py, a `timing.Worker`: the gradient of adapters, once a line read."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

import jax
from matmul import SHAPE, gradient_of

from sr1_jax.models.lora import LoraConfig


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    config = dataclasses.replace(
        SHAPE, layers=request["layers"], lora=LoraConfig(4), matmul_dtype="bfloat16"
    )
    gradient = gradient_of(config, request["batch"], request["length"])
    for _ in sys.stdin:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        jax.block_until_ready(gradient())
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        answer = {"seconds": seconds, "faults": used.ru_minflt - faults}
        print("answer", json.dumps(answer | {"MiB": used.ru_maxrss / 1024}), flush=True)


if __name__ == "__main__":
    main()
