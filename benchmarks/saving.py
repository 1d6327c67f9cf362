"""What saving in the background adds to a training step.

    python benchmarks/saving.py --config=configs/smollm2_qa.py --steps=9 --config.key=value …

One run saves after every other step. Timed is from the row of one step to that of the next, which
holds all that training waits for and whatever the writing in the background takes from it: half of
these spans follow a save, half do not. Printed are the medians of both and their ratio, the size of
a checkpoint, and the seconds that training itself stood still (goodput/checkpoint). The first two
spans, in which programs are compiled, count for neither.

On two quiet cores, configs/smollm2_qa.py, 8 steps: 128.7 s after a save (127.5, 130.0), 122.4
without (139.6, 122.4, 97.9: episodes differ in length), ratio 1.05; a checkpoint has 2.76 GB, and
training itself stood still for less than a thousandth of the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_EVERY = 2


def row_times(workdir: Path, flags: Sequence[str], steps: int) -> list[float]:
    """Runs so many steps; when the row of each was written, in seconds.

    Args:
        workdir: of the run.
        flags: of sr1_jax.train.
        steps: of the run.
    """
    command = [sys.executable, "-m", "sr1_jax.train", f"--workdir={workdir}", *flags]
    metrics, times = workdir / "metrics.jsonl", []
    with open(workdir / "log.txt", "ab") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
        while len(times) < steps:
            ended = running.poll() is not None
            rows = metrics.read_text().count("\n") if metrics.exists() else 0
            times += [time.perf_counter()] * (rows - len(times))
            if ended and rows < steps:
                raise SystemExit((workdir / "log.txt").read_text()[-2000:])
            time.sleep(0.01)
        running.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=9)
    arguments, others = parser.parse_known_args()
    flags = [f"--config={arguments.config}", f"--config.steps={arguments.steps}", *others]
    flags += [f"--config.checkpoint.every={_EVERY}", "--config.checkpoint.best="]
    flags += ["--config.evaluation.every=0", "--config.evaluation.final_questions=0"]
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        times = row_times(workdir, flags, arguments.steps)
        sizes = {
            path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in (workdir / "checkpoints").iterdir()
            if path.name.isdigit()
        }
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    sides: dict[str, list[float]] = {"after a save": [], "without": []}
    # Span number i ends with the row of step i + 1, and follows the save after step i, if any.
    for step in range(3, arguments.steps):
        span = times[step] - times[step - 1]
        sides["after a save" if step % _EVERY == 0 else "without"].append(span)
    medians = {}
    for side, spans in sides.items():
        medians[side] = statistics.median(spans)
        print(f"{side}: median {medians[side]:.2f} s of {', '.join(f'{s:.2f}' for s in spans)}")
    print(f"a checkpoint has {max(sizes.values()) / 1e9:.2f} GB; of the run's time "
          f"{last['goodput/checkpoint']:.1%} went into waiting for them")  # fmt: skip
    print(f"ratio {medians['after a save'] / medians['without']:.3f}")


if __name__ == "__main__":
    main()
