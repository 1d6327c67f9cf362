"""Adds to a corpus the supporting paragraphs of multi-hop questions that it lacks.

python -m sr1_jax.complete_corpus --corpus=FILE --questions=FILE[,FILE...] --out=FILE.jsonl[.gz]

Questions are those of HotpotQA, 2WikiMultihopQA and MuSiQue as published; docs/retrieval.md has
their forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sr1_jax import cli
from sr1_jax.corpus_program import write_corpus
from sr1_jax.retrieval.supporting import Report, complete_corpus


def main(argv: Sequence[str]) -> None:
    write_corpus(
        argv,
        usage=__doc__,
        questions="Questions with their paragraphs, files with commas between them.",
        write=complete_corpus,
        told=_told,
    )


def _told(report: Report, out: str) -> Iterator[str]:
    for of_file in report.files:
        text = (
            f"{of_file.file}: {of_file.questions:,} questions, {of_file.supporting:,} supporting "
            f"paragraphs, {of_file.distinct:,} not in files before; {of_file.in_corpus:,} in the "
            f"corpus, {of_file.added:,} added"
        )
        if of_file.without_text:
            text += f"; {of_file.without_text:,} named titles without a text"
        yield text
    total = report.passages + report.added
    yield f"{report.passages:,} passages + {report.added:,} = {total:,}: {out}"


if __name__ == "__main__":
    cli.run(main)
