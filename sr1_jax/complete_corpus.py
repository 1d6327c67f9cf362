"""Adds to a corpus the supporting paragraphs of multi-hop questions that it lacks.

python -m sr1_jax.complete_corpus --corpus=FILE --questions=FILE[,FILE...] --out=FILE.jsonl[.gz]

Questions are those of HotpotQA, 2WikiMultihopQA and MuSiQue as published; docs/retrieval.md has
their forms.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import rich.console
from absl import flags

from sr1_jax.cli import wants_help
from sr1_jax.paths import local_path, local_paths
from sr1_jax.retrieval.supporting import Report, complete_corpus


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
        given = (options.corpus, options.questions, options.out)
        report_path = local_path(options.report, "--report") if options.report else None
        report = _complete(*given)
        if report_path:
            report_path.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    except (flags.Error, ValueError, OSError, ImportError) as error:
        print(f"complete_corpus: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    _print(report, options.out)
    return 0


def _complete(corpus: str, questions: str, out: str) -> Report:
    paths = local_paths(questions, "--questions")
    where = local_path(corpus, "--corpus"), paths, local_path(out, "--out")
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
        print(text)
    total = report.passages + report.added
    print(f"{report.passages:,} passages + {report.added:,} = {total:,}: {out}")


def _define_flags() -> flags.FlagValues:
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    flags.DEFINE_string("corpus", None, "Corpus; it is left as it is.", flag_values=values)
    flags.DEFINE_string(
        "questions", None, "Questions with their paragraphs, files with commas between them.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("out", None, "Corpus to write, .jsonl or .jsonl.gz.", flag_values=values)
    flags.DEFINE_string("report", "", "File for the report, JSON.", flag_values=values)
    flags.mark_flags_as_required(["corpus", "questions", "out"], flag_values=values)
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv))
