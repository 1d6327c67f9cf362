"""Writes a corpus without the passages that answer questions, to ask a policy what it remembers.

    python -m sr1_jax.withhold --corpus=FILE --questions=FILE[,FILE...] --out=FILE.jsonl[.gz]

Passages of a question's supporting titles go, and those that hold one of its answers and at least
two of its words. Evaluated over the rest, a policy can answer only from its weights, or by luck.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import rich.console
from absl import flags

from sr1_jax import cli
from sr1_jax.data.questions import read_questions
from sr1_jax.evaluation.withheld import withhold
from sr1_jax.paths import local_path, local_paths, output_or_none, output_path, write_whole
from sr1_jax.terminal import one_line


def main(argv: Sequence[str]) -> None:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("corpus", None, "Corpus; it is left as it is.", **define)
    flags.DEFINE_string("questions", None, "JSON lines; several files with commas.", **define)
    flags.DEFINE_string("out", None, "Corpus to write, .jsonl or .jsonl.gz.", **define)
    flags.DEFINE_string("report", "", "File for the report, JSON.", **define)
    cli.parse(values, argv, required=("corpus", "questions", "out"), usage=__doc__)
    with (
        output_or_none(values.report, "--report") as report_path,
        output_path(values.out, "--out") as out,
    ):
        if out.exists():
            raise ValueError(f"{values.out} is there already; name another file, or remove it.")
        corpus = local_path(values.corpus, "--corpus")
        questions = read_questions(*local_paths(values.questions, "--questions"))
        with rich.console.Console(stderr=True).status("reading the corpus") as status:
            report = withhold(
                corpus,
                questions,
                out,
                progress=lambda share: status.update(f"reading the corpus: {share:.0%}"),
            )
        if report_path:
            write_whole(report_path, json.dumps(report.to_dict(), indent=2) + "\n")
    print(
        one_line(
            f"{report.passages:,} passages - {report.by_title:,} of supporting titles - "
            f"{report.by_answer:,} that hold an answer = {report.left:,}: {values.out}"
        )
    )


if __name__ == "__main__":
    cli.run(main)
