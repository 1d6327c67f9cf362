"""Builds a BM25 index of a corpus, on all cores.

python -m sr1_jax.index --corpus=FILE.jsonl[.gz] --index=DIR

The corpus may also be a parquet file or the folder of a TFDS data set; docs/retrieval.md has its
forms.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rich.console
from absl import flags
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr1_jax import cli
from sr1_jax.evaluation.progress import duration
from sr1_jax.paths import local_path
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval import bm25_build as building
from sr1_jax.retrieval.bm25 import none_or
from sr1_jax.terminal import one_line

# Where there is no terminal, a line of progress at most so often.
_EVERY_SECONDS = 30.0


def main(argv: Sequence[str]) -> None:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string(
        "corpus", None, "Corpus: .jsonl, .jsonl.gz, .parquet or a TFDS folder.", **define
    )
    flags.DEFINE_string("index", None, "Folder for the index.", **define)
    flags.DEFINE_float("k1", 0.9, "Saturation of word counts.", **define)
    flags.DEFINE_float("b", 0.4, "Strength of length normalisation.", **define)
    flags.DEFINE_string("stemmer", "english", "Snowball stemmer, or none.", **define)
    flags.DEFINE_string("stopwords", "en", "Stop-word language, or none.", **define)
    flags.DEFINE_integer("workers", 0, "Processes; 0 for one a core.", lower_bound=0, **define)
    cli.parse(values, argv, required=("corpus", "index"), usage=__doc__)
    corpus, index = local_path(values.corpus, "--corpus"), local_path(values.index, "--index")
    began = time.perf_counter()
    print(one_line(f"indexing {corpus} …"), flush=True)
    with _shown() as progress:
        retriever = BM25Retriever.build(
            corpus,
            index,
            k1=values.k1,
            b=values.b,
            stemmer=none_or(values.stemmer),
            stopwords=none_or(values.stopwords),
            workers=values.workers,
            progress=progress,
        )
    seconds = duration(time.perf_counter() - began)
    print(one_line(f"{len(retriever):,} passages indexed in {seconds}: {index}"))


@contextmanager
def _shown() -> Iterator[building.Progress]:
    """Shows progress on stderr: a bar for each stage at a terminal, elsewhere a line at times."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks = {
            stage: bars.add_task(stage, total=1.0, start=stage == building.COUNTING)
            for stage in (building.COUNTING, building.MERGING)
        }

        def show(stage: str, share: float) -> None:
            bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=share)

        yield show


def _lines() -> building.Progress:
    last = time.monotonic()

    def show(stage: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_SECONDS:
            last = time.monotonic()
            print(f"{stage} {share:.0%}", file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    # Building an index must not take the accelerator from a training run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.run(main)
