"""Builds a BM25 index of a corpus, on all cores.

python -m sr1_jax.index --corpus=FILE.jsonl[.gz] --index=DIR

The corpus may also be a parquet file or the folder of a TFDS data set; docs/retrieval.md has its
forms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import rich.console
from absl import flags
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr1_jax.cli import wants_help
from sr1_jax.paths import local_path
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval import bm25_build as building
from sr1_jax.retrieval.bm25 import none_or

# Where there is no terminal, a line of progress at most so often.
_EVERY_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    """Runs the program; returns its exit code, 2 after an error told on stderr."""
    options = _define_flags()
    if wants_help(argv):
        print(f"{__doc__}\n{options.get_help()}")
        return 0
    try:
        rest = options(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=value.")
        start = time.perf_counter()
        with _shown() as progress:
            retriever = BM25Retriever.build(
                local_path(options.corpus, "--corpus"),
                local_path(options.index, "--index"),
                k1=options.k1,
                b=options.b,
                stemmer=none_or(options.stemmer),
                stopwords=none_or(options.stopwords),
                workers=options.workers,
                progress=progress,
            )
    except (flags.Error, ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"index: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    print(f"{len(retriever):,} passages indexed in {seconds:.1f} s: {options.index}")
    return 0


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


def _define_flags() -> flags.FlagValues:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    flags.DEFINE_string(
        "corpus", None, "Corpus: .jsonl, .jsonl.gz, .parquet or a TFDS folder.", flag_values=values
    )
    flags.DEFINE_string("index", None, "Folder for the index.", flag_values=values)
    flags.DEFINE_float("k1", 0.9, "Saturation of word counts.", flag_values=values)
    flags.DEFINE_float("b", 0.4, "Strength of length normalisation.", flag_values=values)
    flags.DEFINE_string("stemmer", "english", "Snowball stemmer, or none.", flag_values=values)
    flags.DEFINE_string("stopwords", "en", "Stop-word language, or none.", flag_values=values)
    flags.DEFINE_integer(
        "workers", 0, "Processes; 0 for one a core.", lower_bound=0, flag_values=values
    )
    flags.mark_flags_as_required(["corpus", "index"], flag_values=values)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv))
