"""Builds a BM25 index of a corpus.

python -m sr1_jax.index --corpus=FILE.jsonl[.gz] --index=DIR
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from absl import flags

from sr1_jax import cli
from sr1_jax.evaluation.progress import duration, working
from sr1_jax.paths import local_path
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval.bm25 import none_or
from sr1_jax.terminal import one_line


def main(argv: Sequence[str]) -> None:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("corpus", None, "Corpus, .jsonl or .jsonl.gz.", **define)
    flags.DEFINE_string("index", None, "Folder for the index.", **define)
    flags.DEFINE_float("k1", 0.9, "Saturation of word counts.", **define)
    flags.DEFINE_float("b", 0.4, "Strength of length normalisation.", **define)
    flags.DEFINE_string("stemmer", "english", "Snowball stemmer, or none.", **define)
    flags.DEFINE_string("stopwords", "en", "Stop-word language, or none.", **define)
    cli.parse(values, argv, required=("corpus", "index"), usage=__doc__)
    corpus, index = local_path(values.corpus, "--corpus"), local_path(values.index, "--index")
    began = time.perf_counter()
    with working(f"indexing {corpus}"):
        retriever = BM25Retriever.build(
            corpus,
            index,
            k1=values.k1,
            b=values.b,
            stemmer=none_or(values.stemmer),
            stopwords=none_or(values.stopwords),
        )
    seconds = duration(time.perf_counter() - began)
    print(one_line(f"{len(retriever):,} passages indexed in {seconds}: {index}"))


if __name__ == "__main__":
    # bm25s starts JAX; building an index must not take the accelerator from a training run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.run(main)
