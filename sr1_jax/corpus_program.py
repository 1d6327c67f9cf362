"""What programs share that write a corpus from another one and from questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import rich.console
from absl import flags

from sr1_jax import cli
from sr1_jax.paths import local_path, local_paths, output_or_none, output_path, write_whole
from sr1_jax.terminal import one_line


class Report(Protocol):
    """What was done to a corpus."""

    def to_dict(self) -> dict[str, Any]: ...


def write_corpus(
    argv: Sequence[str],
    *,
    usage: str,
    questions: str,
    write: Callable[..., Report],
    told: Callable[[Any, str], Iterable[str]],
) -> None:
    """Reads flags, has the corpus written, and tells what was done.

    Args:
        argv: command line.
        usage: of the program.
        questions: what the flag of this name takes.
        write: (corpus, question files, out, progress=share -> None) -> report.
        told: (report, out as it was given) -> lines to print.

    Raises:
        ValueError, FileNotFoundError: bad flags; or as `write`.
    """
    # Flags of its own, so that entry points imported together do not clash.
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("corpus", None, "Corpus; it is left as it is.", **define)
    flags.DEFINE_string("questions", None, questions, **define)
    flags.DEFINE_string("out", None, "Corpus to write, .jsonl or .jsonl.gz.", **define)
    flags.DEFINE_string("report", "", "File for the report, JSON.", **define)
    cli.parse(values, argv, required=("corpus", "questions", "out"), usage=usage)
    with (
        output_or_none(values.report, "--report") as report_path,
        output_path(values.out, "--out") as out,
    ):
        paths = local_paths(values.questions, "--questions")
        report = _shown(write, local_path(values.corpus, "--corpus"), paths, out)
        if report_path:
            write_whole(report_path, json.dumps(report.to_dict(), indent=2) + "\n")
    for line in told(report, values.out):
        print(one_line(line))


def _shown(write: Callable[..., Report], *where: Path | Sequence[Path]) -> Report:
    """What `write` reports; a terminal shows how far it is."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        return write(*where)
    with console.status("reading questions") as status:
        return write(
            *where, progress=lambda share: status.update(f"copying the corpus: {share:.0%}")
        )
