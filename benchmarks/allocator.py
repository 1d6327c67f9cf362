"""What another allocator gains where JAX trains on a CPU.

Buffers of a step are large, and glibc gives each back to the system, which has to clear the pages
of the next.

    python benchmarks/allocator.py --preload=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2

The gradient of adapters of SmolLM2-135M's shape, fewer layers, in two processes, by turns: with the
allocator of the system and with the library. Printed are the medians of seconds and of page faults
a gradient, the most memory, and the ratio. Unless MALLOC_CONF is set, jemalloc is told never to
give pages back, large ones included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from timing import Worker

_CONF = "dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preload", required=True, type=Path)
    for name, default in dict(layers=8, batch=2, length=448, runs=8).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    library = arguments.preload.resolve()
    if not library.is_file():
        parser.error(f"--preload={library}: there is no such file")
    conf = os.environ.get("MALLOC_CONF", _CONF)
    request = {name: getattr(arguments, name) for name in ("layers", "batch", "length")}

    def side(**environment: str) -> Worker:
        return Worker(sys.executable, "adapter_gradient.py", request, environment)

    with side() as system, side(LD_PRELOAD=str(library), MALLOC_CONF=conf) as other:
        sides = {"system": system, library.name: other}
        rows = [
            {name: side.ask() for name, side in sides.items()} for _ in range(arguments.runs + 1)
        ]
    medians = []
    for name in sides:
        mine = [row[name] for row in rows[1:]]  # the first is compiled
        medians.append(statistics.median(row["seconds"] for row in mine))
        faults = statistics.median(row["faults"] for row in mine)
        peak = mine[-1]["MiB"]
        print(f"{name}: {medians[-1]:.2f} s, {faults:,.0f} page faults, {peak:,.0f} MiB at most")
    print(f"ratio {medians[0] / medians[1]:.2f}")


if __name__ == "__main__":
    main()
