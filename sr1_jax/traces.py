"""Writes traces to imitate: how a policy could have answered questions by searching.

    python -m sr1_jax.traces --config=configs/smollm2_qa.py --questions=train.jsonl \\
        --corpus=corpus.jsonl.gz --out=traces.jsonl [--share=0.5 --rest=rest.jsonl]

Prompt, passages, budgets and tokenizer are those of the config; no model is run. A phase of
warm_start.phases with examples="traces.jsonl" imitates what is written. With --share only that
part of the questions is used, drawn by a hash of their words, and --rest has the others, for
reinforcement learning; with --rest_found only those whose own words find a passage that holds the
answer. Tables of what was written, what was left out and how well queries find are printed;
--report keeps them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import rich
import rich.console
from absl import flags

from sr1_jax import cli
from sr1_jax.data.questions import Question, read_questions, stratified
from sr1_jax.environment import make_environment
from sr1_jax.environment import settings as environment_settings
from sr1_jax.environment.tool import check_tools
from sr1_jax.evaluation import methods
from sr1_jax.imitation.asked import VARIANTS, Asked
from sr1_jax.imitation.plans import Options
from sr1_jax.imitation.report import Report
from sr1_jax.imitation.shown import Searches
from sr1_jax.imitation.split import distinct, is_taken, write_lines, write_rest
from sr1_jax.imitation.stage import Stage
from sr1_jax.imitation.thoughts import WORDINGS
from sr1_jax.imitation.writer import as_rows, write_traces
from sr1_jax.paths import disk_path, local_paths, output_or_none, output_path, path_or_none
from sr1_jax.protocol.prompts import load_template
from sr1_jax.protocol.tags import SEARCH
from sr1_jax.retrieval.hooks import told_at_end
from sr1_jax.retrieval.open import check_retrieval, leave_accelerators, needs_corpus
from sr1_jax.terminal import one_line
from sr1_jax.training import task
from sr1_jax.training.checks import check_paths
from sr1_jax.training.policies import base_files
from sr1_jax.training.settings import RUN, unknown_setting


class Choices(NamedTuple):
    """What is written; see the flags."""

    limit: int = 0
    seed: int = 0
    share: float = 1.0
    queries: str = ",".join(VARIANTS)
    chain: float = 0.5
    again: float = 0.15
    gave_up: float = 0.05
    thoughts: str = "varied"

    @property
    def variants(self) -> tuple[str, ...]:
        """Of first queries."""
        return tuple(self.queries.split(","))

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: naming flag and value.
        """
        if self.limit < 0:
            raise ValueError(f"--limit must not be negative, not {self.limit}; 0 stands for all.")
        if not 0 < self.share <= 1:
            raise ValueError(f"--share must lie in (0, 1], not {self.share}.")
        for name in ("chain", "again", "gave_up"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must lie in [0, 1], not {getattr(self, name)}.")
        if self.thoughts not in WORDINGS:
            raise ValueError(f"--thoughts={self.thoughts}: give {' or '.join(WORDINGS)}.")
        known = set(self.variants) & set(VARIANTS)
        if len(known) != len(self.variants) or not known & {"question", "keywords"}:
            raise ValueError(
                f"--queries={self.queries}: give some of {', '.join(VARIANTS)}, each once, with "
                "commas; question or keywords among them, as not every question names a title."
            )


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("questions", None, "JSON lines; several files with commas.", **define)
    flags.DEFINE_string("corpus", "", "Passages, JSON lines; where none is given those of the "
                        "config.", **define)  # fmt: skip
    flags.DEFINE_string("out", None, "File for the traces, JSON lines.", **define)
    flags.DEFINE_string("rest", "", "File for the questions that are not used.", **define)
    flags.DEFINE_bool("rest_found", False, "Of the others, only those whose own words, as a query, "
                      "find a passage that holds the answer.", **define)  # fmt: skip
    flags.DEFINE_string("report", "", "File for the report, JSON.", **define)
    flags.DEFINE_string("workdir", "", "Folder that keeps an index; without it the index is built "
                        "in memory.", **define)  # fmt: skip
    default = Choices()
    flags.DEFINE_integer("limit", default.limit, "Questions to use, of each source its share; 0: "
                         "all.", **define)  # fmt: skip
    flags.DEFINE_integer("seed", default.seed, "Of what is drawn.", **define)
    flags.DEFINE_float("share", default.share, "Of the questions, by a hash of their words.",
                       **define)  # fmt: skip
    flags.DEFINE_string("queries", default.queries, "Kinds of first queries.", **define)
    flags.DEFINE_float("chain", default.chain, "Of the questions that name several pages and that "
                       "one search answers, those that look up page by page.",
                       **define)  # fmt: skip
    flags.DEFINE_float("again", default.again, "Of the questions with good and bad queries, those "
                       "that first show a bad one.", **define)  # fmt: skip
    flags.DEFINE_float("gave_up", default.gave_up, "Most traces that search in vain, of all.",
                       **define)  # fmt: skip
    flags.DEFINE_string("thoughts", default.thoughts, "varied: of several wordings, which quote "
                        "what was found; short: of one.", **define)  # fmt: skip
    cli.parse(values, argv, required=("config", "questions", "out"), usage=__doc__)
    with (
        output_path(values.out, "--out") as out,
        output_or_none(values.rest, "--rest") as rest,
        output_or_none(values.report, "--report") as report_path,
    ):
        write(
            values.config,
            local_paths(values.questions, "--questions"),
            out,
            Choices(**{name: values[name].value for name in Choices._fields}),
            corpus=path_or_none(values.corpus, "--corpus"),
            rest=rest,
            rest_found=values.rest_found,
            report_path=report_path,
            workdir=disk_path(values.workdir, "--workdir") if values.workdir else None,
        )


def write(
    config: ml_collections.ConfigDict,
    paths: Sequence[Path],
    out: Path,
    choices: Choices,
    *,
    corpus: Path | None = None,
    rest: Path | None = None,
    rest_found: bool = False,
    report_path: Path | None = None,
    workdir: Path | None = None,
) -> Report:
    """Writes traces of question files, and returns what can be said of them.

    Args:
        config: of the run that is to imitate them.
        paths: question files.
        out: for the traces; written last, whole or not at all.
        choices: see `Choices`.
        corpus: passages; None stands for those of the config.
        rest: for the questions that are not used.
        rest_found: only those of them whose own words find a passage that holds the answer.
        report_path: for the report.
        workdir: to keep an index in.

    Raises:
        ValueError, FileNotFoundError: bad settings, or a fault in a file, with its line; found
            before anything is written.
    """
    choices.check()
    _check_config(config, corpus)
    _check_out(paths, [path for path in (out, rest, report_path) if path is not None])
    if rest is not None and choices.share == 1 and not choices.limit:
        raise ValueError(
            "--rest: with --share=1 every question is used; give a smaller share, or --limit."
        )
    if rest_found and rest is None:
        raise ValueError("--rest_found says which questions --rest has: give a file by --rest.")
    questions = _taken(paths, choices)
    tokenizer = base_files(config).tokenizer
    template = methods.prompt_template(config, "search", tokenizer)
    console = rich.console.Console(stderr=True)
    with console.status("opening the index") as status:
        leave_accelerators(config.retrieval)
        retriever = task.corpus_retriever(config, corpus, workdir and workdir / "data")
        environment = make_environment(config, retriever, template, rewarded=False)
        searches = Searches(environment, tokenizer, config.rollout)
        traces, report = write_traces(
            questions,
            searches,
            Stage(environment, config.rollout, tokenizer, searches),
            Options(
                _budget(config), choices.variants, choices.chain, choices.again, choices.thoughts
            ),
            seed=choices.seed,
            gave_up=choices.gave_up,
            progress=lambda stage, share: status.update(f"{stage}: {share:.0%}"),
        )
    if not traces:
        raise ValueError(
            f"No trace could be written of {len(questions)} questions: {report.reasons()}."
        )
    if rest is not None:
        among = functools.partial(_found, searches=searches) if rest_found else list
        count = write_rest(paths, questions, rest, among)
        print(one_line(f"{count:,} questions are left: {rest}"))
    if report_path is not None:
        text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
        write_lines(report_path, [text])
    rows = as_rows(traces, tokenizer)
    write_lines(out, (json.dumps(row, ensure_ascii=False) for row in rows))
    report.print(rich.get_console())
    if told := told_at_end(retriever):
        print(one_line(told))
    print(one_line(f"{len(traces):,} traces of {len(questions):,} questions: {out}"))
    return report


def _found(questions: Sequence[Question], searches: Searches) -> list[Question]:
    """Those whose own words, as a query, find a passage that holds the answer."""
    searches.ask(question.question for question in questions)
    return [
        question
        for question in questions
        if Asked(question).is_answered_in(searches[question.question])
    ]


def _check_config(config: ml_collections.ConfigDict, corpus: Path | None) -> None:
    RUN.check(config)
    check_paths(config)
    environment_settings.check_config(config.environment)
    check_retrieval(config.retrieval, config.rollout.passages)
    check_tools(config.environment.tools, config)
    if not config.base.path:
        raise ValueError(
            "base.path is not set: traces are written in the tokens of a pretrained model; give "
            "its folder, or smollm2."
        )
    if SEARCH not in config.environment.tools:
        raise ValueError("environment.tools has no search, which the traces show.")
    if _budget(config) < 1:
        raise ValueError(
            "rollout.max_searches and environment.options.search.max_calls leave no search for "
            "traces to show; raise them."
        )
    if needs_corpus(config.retrieval) and not (corpus or config.data.corpus or config.data.index):
        raise ValueError("--corpus is missing: traces need passages.")
    template = load_template(methods.templates(config)["search"])
    if template.wants_information:
        raise ValueError(
            f"protocol.search_template={template.name} puts passages into the prompt; traces show "
            "a policy that searches for them."
        )


def _budget(config: ml_collections.ConfigDict) -> int:
    """Most searches of an episode."""
    options = environment_settings.CallOptions.of(config.environment.options, SEARCH)
    limits = (config.rollout.max_searches, options.max_calls)
    return min(limit for limit in limits if limit is not None)


def _check_out(paths: Sequence[Path], outs: Sequence[Path]) -> None:
    """Refuses to write over what is read, or two files into one."""
    seen = {path.resolve(): path for path in paths}
    for out in outs:
        if out.resolve() in seen:
            raise ValueError(f"{out} is given twice, to be read or written; name another file.")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent}.")
        seen[out.resolve()] = out


def _taken(paths: Sequence[Path], choices: Choices) -> list[Question]:
    """The questions that get traces."""
    read = read_questions(*paths)
    questions = distinct(read)
    if len(questions) < len(read):
        cli.notice(f"{len(read) - len(questions):,} questions have the words of an earlier one.")
    questions = [q for q in questions if is_taken(q.question, choices.share)]
    if choices.limit:
        drawn = {q.id for q in stratified(questions, choices.limit, choices.seed)}
        questions = [q for q in questions if q.id in drawn]
    if not questions:
        raise ValueError(f"--share={choices.share} of {len(read)} questions is none; raise it.")
    return questions


if __name__ == "__main__":
    cli.run(main)
