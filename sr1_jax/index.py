"""Builds a BM25 index of a corpus.

python -m sr1_jax.index --corpus=FILE.jsonl[.gz] --index=DIR
"""

import os
import sys
import time
from collections.abc import Sequence

from absl import flags

from sr1_jax.cli import wants_help
from sr1_jax.paths import local_path
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval.bm25 import none_or


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
        retriever = BM25Retriever.build(
            local_path(options.corpus, "--corpus"),
            local_path(options.index, "--index"),
            k1=options.k1,
            b=options.b,
            stemmer=none_or(options.stemmer),
            stopwords=none_or(options.stopwords),
        )
    except (flags.Error, ValueError, OSError) as error:
        print(f"index: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    print(f"{len(retriever):,} passages indexed in {seconds:.1f} s: {options.index}")
    return 0


def _define_flags() -> flags.FlagValues:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    flags.DEFINE_string("corpus", None, "Corpus, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("index", None, "Folder for the index.", flag_values=values)
    flags.DEFINE_float("k1", 0.9, "Saturation of word counts.", flag_values=values)
    flags.DEFINE_float("b", 0.4, "Strength of length normalisation.", flag_values=values)
    flags.DEFINE_string("stemmer", "english", "Snowball stemmer, or none.", flag_values=values)
    flags.DEFINE_string("stopwords", "en", "Stop-word language, or none.", flag_values=values)
    flags.mark_flags_as_required(["corpus", "index"], flag_values=values)
    return values


if __name__ == "__main__":
    # bm25s starts JAX; building an index must not take the accelerator from a training run.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main(sys.argv))
