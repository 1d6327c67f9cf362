"""Writes a corpus without the passages that answer questions, to ask a policy what it remembers.

    python -m sr1_jax.withhold --corpus=FILE --questions=FILE[,FILE...] --out=FILE.jsonl[.gz]

Passages of a question's supporting titles go, and those that hold one of its answers and at least
two of its words. Evaluated over the rest, a policy can answer only from its weights, or by luck.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sr1_jax import cli
from sr1_jax.corpus_program import write_corpus
from sr1_jax.data.questions import read_questions
from sr1_jax.evaluation.withheld import Report, withhold


def main(argv: Sequence[str]) -> None:
    write_corpus(
        argv,
        usage=__doc__,
        questions="JSON lines; several files with commas.",
        write=_of_files,
        told=_told,
    )


def _of_files(corpus: Path, paths: Sequence[Path], out: Path, **progress: Any) -> Report:
    return withhold(corpus, read_questions(*paths), out, **progress)


def _told(report: Report, out: str) -> Iterator[str]:
    yield (
        f"{report.passages:,} passages - {report.by_title:,} of supporting titles - "
        f"{report.by_answer:,} that hold an answer = {report.left:,}: {out}"
    )


if __name__ == "__main__":
    cli.run(main)
