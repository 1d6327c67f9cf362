"""Builds a search index of a corpus: by words (BM25) on all cores, or dense.

    python -m sr1_jax.index --corpus=FILE.jsonl[.gz] --index=DIR
    python -m sr1_jax.index --corpus=FILE --index=DIR --kind=dense --encoder=FOLDER [--dtype=int8]
    python -m sr1_jax.index --corpus=FILE --index=DIR --config=FILE.py [--config.retrieval.KEY=…]
    python -m sr1_jax.index --corpus=FILE --output=gs://BUCKET/FOLDER [--index=DIR]

The corpus may also be a parquet file or the folder of a TFDS data set; docs/retrieval.md has its
forms. With --config the section retrieval of a run says which index is built, and with what. A
dense index is built on the accelerators, and goes on where it was interrupted; --export writes its
vectors besides, as .npy or as a flat index of FAISS.

With --output the index is built in --index, or in a temporary folder, and copied to a bucket, the
file that makes it complete last. Runs take it by data.index, and none builds it again.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import rich.console
from absl import flags
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sr1_jax import cli
from sr1_jax.evaluation.progress import duration
from sr1_jax.models.encoder_recipe import Recipe
from sr1_jax.paths import disk_path, local_path, output_or_none, path_or_none
from sr1_jax.retrieval import BM25Retriever, check_retrieval, dense_build
from sr1_jax.retrieval import bm25_build as building
from sr1_jax.retrieval import index_copies as copies
from sr1_jax.retrieval.bm25 import bm25_options
from sr1_jax.retrieval.dense import build_index, encoder_of
from sr1_jax.retrieval.faiss_search import check_faiss, open_faiss
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.retrieval.vector_files import write_faiss, write_npy
from sr1_jax.retrieval.vectors import DTYPES
from sr1_jax.storage import is_bucket
from sr1_jax.terminal import one_line
from sr1_jax.training.settings import RUN, default_config, unknown_setting

_STAGES = {
    "bm25": (building.COUNTING, building.MERGING),
    "dense": (dense_build.READING, dense_build.EMBEDDING),
}
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
    flags.DEFINE_string("output", None, "Folder that it is copied to, also gs://…; without "
                        "--index it is kept nowhere else.", **define)  # fmt: skip
    flags.DEFINE_float("k1", 0.9, "Saturation of word counts.", **define)
    flags.DEFINE_float("b", 0.4, "Strength of length normalisation.", **define)
    flags.DEFINE_string("stemmer", "english", "Snowball stemmer, or none.", **define)
    flags.DEFINE_string("stopwords", "en", "Stop-word language, or none.", **define)
    flags.DEFINE_integer("workers", 0, "Processes; 0 for one a core.", lower_bound=0, **define)
    flags.DEFINE_enum("kind", None, ["bm25", "dense"], "Of index; bm25 by default.", **define)
    flags.DEFINE_string("encoder", None, "Of a dense index: folder of the model.", **define)
    flags.DEFINE_enum("dtype", None, DTYPES, "Of a dense index: bfloat16 by default.", **define)
    flags.DEFINE_string("vectors", None, "Made elsewhere: .npy, a flat index of FAISS.", **define)
    flags.DEFINE_string(
        "faiss", None, "Of a dense index: also makes one of FAISS, e.g. HNSW32, that runs with the "
        "same retrieval.dense.search.faiss search.", **define
    )  # fmt: skip
    flags.DEFINE_string("export", None, "Writes vectors: .npy, .faiss.", **define)
    cli.config_flag(values, RUN, unknown_setting)
    cli.parse(values, argv, required=("corpus",), usage=__doc__)
    if not (values.index or values.output):
        raise ValueError("--index is missing, the folder for the index; or give --output.")
    retrieval = _settings(values)
    if values.export is not None:
        _check_export(values.export)
    check_retrieval(retrieval)
    if values.output and retrieval.kind == "dense" and not values.index:
        raise ValueError(
            "--index is missing: a dense index takes hours, and is gone on with there when it was "
            "interrupted, or when --output failed."
        )
    if values.output and retrieval.dense.search.faiss:
        raise ValueError(
            f"--faiss={retrieval.dense.search.faiss} makes a file beside the index, which --output "
            "does not copy: leave one of them out. A run with that retrieval.dense.search.faiss "
            "makes the file on its first use."
        )
    output = None if values.output is None else copies.check_target(values.output, "--output")
    with contextlib.ExitStack() as stack:
        export = stack.enter_context(output_or_none(values.export or "", "--export"))
        if values.index:
            index = disk_path(values.index, "--index")
        else:
            index = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "index"
        _build(values, retrieval, local_path(values.corpus, "--corpus"), index, export)
        if output is not None:
            copies.copy_index(index, output)
            print(one_line(f"copied: {values.output}"))


def _build(
    values: flags.FlagValues,
    retrieval: ml_collections.ConfigDict,
    corpus: Path,
    index: Path,
    export: Path | None,
) -> None:
    """Builds an index, says so, and writes its vectors where that is asked for."""
    began = time.perf_counter()
    print(one_line(f"indexing {corpus} …"), flush=True)
    if retrieval.kind == "dense":
        _build_dense(retrieval, corpus, index, export, began)
        return
    with _shown(retrieval.kind) as progress:
        options = bm25_options(retrieval)
        retriever = BM25Retriever.build(
            corpus, index, **options, workers=values.workers, progress=progress
        )
    _tell_built(len(retriever), began, index)


def _tell_built(passages: int, began: float, index: Path) -> None:
    seconds = duration(time.perf_counter() - began)
    print(one_line(f"{passages:,} passages indexed in {seconds}: {index}"))


# Flags that say something of one kind alone.
_OF_KIND = {
    "bm25": ("k1", "b", "stemmer", "stopwords", "workers"),
    "dense": ("encoder", "dtype", "vectors", "faiss", "export"),
}
# Flag -> key of the section retrieval.
_KEYS = {
    **{name: name for name in ("kind", "k1", "b", "stemmer", "stopwords")},
    **{name: f"dense.{name}" for name in ("encoder", "dtype", "vectors")},
    "faiss": "dense.search.faiss",
}


def _settings(values: flags.FlagValues) -> ml_collections.ConfigDict:
    """The section retrieval of --config, or the defaults, with what flags say instead.

    Raises:
        ValueError: a value out of range, a kind of which no index is built, or a flag that says
            nothing of the kind.
    """
    retrieval = (default_config() if values.config is None else values.config).retrieval
    for flag, key in _KEYS.items():
        if values[flag].present:
            *sections, name = key.split(".")
            functools.reduce(operator.getitem, sections, retrieval)[name] = values[flag].value
    if retrieval.kind not in _OF_KIND:
        raise ValueError(
            f"retrieval.kind={retrieval.kind!r}: indexes are built of bm25 and dense; give "
            "--kind=bm25 or --kind=dense. A hybrid index is a folder with one of each, DIR/bm25 "
            "and DIR/dense."
        )
    for flag in _OF_KIND["dense" if retrieval.kind == "bm25" else "bm25"]:
        if values[flag].present:
            raise ValueError(f"--{flag} says nothing of a {retrieval.kind} index; leave it out.")
    RETRIEVAL.check(retrieval, "retrieval.")
    return retrieval


def _check_export(text: str) -> None:
    path = Path(text)
    if path.suffix not in (".npy", ".faiss", ".index"):
        raise ValueError(f"--export={text}: name a file .npy, .faiss or .index.")
    if not is_bucket(text) and not path.parent.is_dir():
        raise ValueError(f"--export={text}: there is no folder {path.parent}.")


def _build_dense(
    retrieval: ml_collections.ConfigDict,
    corpus: Path,
    index: Path,
    export: Path | None,
    began: float,
) -> None:
    """A dense index; its vectors stay on the disk, as the machine may have no room for all."""
    options = retrieval.dense
    if jax.process_count() > 1:
        raise ValueError(
            "This is one host of several, each of which would embed the whole corpus: build a "
            "dense index on a machine of its own, with --index and --output, and name it by "
            "data.index (docs/retrieval.md)."
        )
    encoder = encoder_of(options)
    check_faiss(options.search, encoder.width)
    print(one_line(f"encoder: {_told_recipe(encoder.recipe)}"), flush=True)
    vectors = path_or_none(options.vectors, "--vectors")
    with _shown("dense") as progress:
        manifest, made = build_index(
            corpus, index, encoder, dtype=options.dtype, vectors=vectors, progress=progress
        )
        if options.search.faiss:
            open_faiss(index, manifest, made, options.search, progress)
    _tell_built(made.count, began, index)
    if cut := manifest["cut_passages"]:
        most = encoder.recipe.max_tokens
        print(f"{cut:,} passages are longer than {most} tokens: their vectors are of the beginning")
    if export is not None:
        (write_npy if export.suffix == ".npy" else write_faiss)(export, made)
        print(one_line(f"vectors written: {export}"))


def _told_recipe(recipe: Recipe) -> str:
    length = ", length 1" if recipe.normalized else ""
    return (
        f"{recipe.pooling} of at most {recipe.max_tokens} tokens{length}; before queries "
        f"{recipe.query_prefix!r}, before passages {recipe.passage_prefix!r}"
    )


@contextlib.contextmanager
def _shown(kind: str) -> Iterator[building.Progress]:
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
            stage: bars.add_task(stage, total=1.0, start=stage == _STAGES[kind][0])
            for stage in _STAGES[kind]
        }

        def show(stage: str, share: float) -> None:
            if stage not in tasks:  # FAISS's, with --faiss alone
                tasks[stage] = bars.add_task(stage, total=1.0)
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
    cli.run(main)
