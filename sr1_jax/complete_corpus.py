"""Adds to a corpus the supporting paragraphs of multi-hop questions that it lacks.

python -m sr1_jax.complete_corpus --corpus=FILE --questions=FILE[,FILE...] --out=FILE.jsonl[.gz]

Questions are those of HotpotQA, 2WikiMultihopQA and MuSiQue as published; docs/retrieval.md has
their forms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from sr1_jax import cli
from sr1_jax.paths import local_path, local_paths, output_or_none, output_path, write_whole
from sr1_jax.retrieval.supporting import Report, complete_corpus
from sr1_jax.terminal import one_line


def main(argv: Sequence[str]) -> None:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("corpus", None, "Corpus; it is left as it is.", **define)
    flags.DEFINE_string(
        "questions", None, "Questions with their paragraphs, files with commas between them.",
        **define,
    )  # fmt: skip
    flags.DEFINE_string("out", None, "Corpus to write, .jsonl or .jsonl.gz.", **define)
    flags.DEFINE_string("report", "", "File for the report, JSON.", **define)
    cli.parse(values, argv, required=("corpus", "questions", "out"), usage=__doc__)
    with (
        output_or_none(values.report, "--report") as report_path,
        output_path(values.out, "--out") as out,
    ):
        report = _complete(values.corpus, values.questions, out)
        if report_path:
            write_whole(report_path, json.dumps(report.to_dict(), indent=2) + "\n")
    _print(report, values.out)


def _complete(corpus: str, questions: str, out: Path) -> Report:
    paths = local_paths(questions, "--questions")
    where = local_path(corpus, "--corpus"), paths, out
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        return complete_corpus(*where)
    with console.status("reading questions") as status:
        return complete_corpus(
            *where, progress=lambda share: status.update(f"copying the corpus: {share:.0%}")
        )


def _print(report: Report, out: str) -> None:
    for of_file in report.files:
        text = (
            f"{of_file.file}: {of_file.questions:,} questions, {of_file.supporting:,} supporting "
            f"paragraphs, {of_file.distinct:,} not in files before; {of_file.in_corpus:,} in the "
            f"corpus, {of_file.added:,} added"
        )
        if of_file.without_text:
            text += f"; {of_file.without_text:,} named titles without a text"
        print(one_line(text))
    total = report.passages + report.added
    print(one_line(f"{report.passages:,} passages + {report.added:,} = {total:,}: {out}"))


if __name__ == "__main__":
    cli.run(main)
