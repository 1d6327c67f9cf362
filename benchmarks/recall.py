"""How often an answer stands in the first passages: kinds of retrievers side by side.

    python benchmarks/recall.py --corpus=FILE --questions=FILE[,FILE...] [--kinds=bm25,dense,hybrid]
        [--encoder=FOLDER --dtype=float32] [--rerank=FOLDER --depth=20] [--limit=100]
        [--indexes=FOLDER]

Each kind is asked --limit questions of each file, drawn by a hash of their ids; with --rerank what
it finds is besides ranked by that cross-encoder. Questions answered yes or no are left out, as they
are in docs/retrieval.md. Printed is, for each file, the share of questions with an answer, in whole
words, in the first 1, 2, 3 and 10 passages; --indexes keeps what is built.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sr1_jax.data.questions import read_questions, stratified
from sr1_jax.reranking.examples import answer_recall
from sr1_jax.retrieval import check_retrieval, open_retriever
from sr1_jax.retrieval.hybrid import HybridRetriever
from sr1_jax.retrieval.open import wrapped
from sr1_jax.retrieval.settings import RETRIEVAL

TOPS = (1, 2, 3, 10)


def settings(kind: str, arguments: argparse.Namespace):
    config = RETRIEVAL.defaults()
    config.kind = kind
    config.dense.encoder, config.dense.dtype = arguments.encoder, arguments.dtype
    check_retrieval(config)
    return config


def main() -> None:
    names = lambda text: tuple(text.split(","))  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--questions", type=names, required=True)
    parser.add_argument("--kinds", type=names, default=("bm25",))
    parser.add_argument("--encoder", default="")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rerank", default="")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--max_tokens", type=int)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--indexes", type=Path)
    arguments = parser.parse_args()
    sets = {
        Path(path).name.partition(".")[0]: stratified(read_questions(path), arguments.limit, 0)
        for path in arguments.questions
    }
    opened = {}
    for kind in arguments.kinds:
        config = settings(kind, arguments)
        index = arguments.indexes and arguments.indexes / kind
        if kind == "hybrid" and all(part in opened for part in config.hybrid.kinds):
            parts = {part: opened[part] for part in config.hybrid.kinds}
            retriever = HybridRetriever(parts, k=config.hybrid.k, depth=config.hybrid.depth)
        else:
            retriever = open_retriever(config, arguments.corpus, index)
        opened[kind] = retriever
        sides = {kind: retriever}
        if arguments.rerank:
            own = {"model": arguments.rerank, "depth": arguments.depth}
            config.rerank.update(own | {"max_tokens": arguments.max_tokens})
            sides[f"{kind} + reranker"] = wrapped(retriever, config)
        for name, questions in sets.items():
            for side, searched in sides.items():
                began = time.perf_counter()
                found = searched.search([q.question for q in questions], max(TOPS))
                seconds = (time.perf_counter() - began) / len(questions)
                shares = answer_recall(questions, found, TOPS)
                shown = "  ".join(f"@{top} {100 * x:5.1f}" for top, x in zip(TOPS, shares))
                print(f"{name:24}{side:24}{shown}  {seconds:.3f} s a question", flush=True)


if __name__ == "__main__":
    main()
