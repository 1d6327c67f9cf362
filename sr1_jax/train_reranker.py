"""Trains a reranker: a cross-encoder that orders what a search found.

    python -m sr1_jax.train_reranker --model=MINILM --questions=FILE[,FILE...] --corpus=FILE \\
        --output=FOLDER [--dev=FILE[,FILE...]]

The model is an encoder of BERT's family or a cross-encoder, a Hugging Face folder; so is what is
written, and transformers loads it. Each question is searched for in the corpus, by words or with
the settings of --config; of what is found, passages that hold a golden answer are to be ranked
above those that hold none. Printed is how often an answer stands in the first passages of
development questions, as they are found and as the reranker orders them. A run uses it with
retrieval.rerank.model=FOLDER.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx

from sr1_jax import cli
from sr1_jax.data.questions import Question, read_questions, stratified
from sr1_jax.evaluation.progress import counting, working
from sr1_jax.models.cross_encoder_folder import (
    PairModel,
    save_cross_encoder,
    start_cross_encoder,
)
from sr1_jax.models.export import check_free
from sr1_jax.paths import (
    local_path,
    local_paths,
    output_or_none,
    output_path,
    path_or_none,
    write_whole,
)
from sr1_jax.reranking.examples import (
    Example,
    answer_recall,
    batches_in,
    draw_lists,
    make_examples,
)
from sr1_jax.reranking.trainer import RerankerTrainer
from sr1_jax.retrieval import Retriever, check_retrieval, open_retriever
from sr1_jax.retrieval.dispatch import own_devices
from sr1_jax.retrieval.open import needs_corpus
from sr1_jax.retrieval.pair_scorer import PairScorer, PairTokens
from sr1_jax.retrieval.rerank import Reranked
from sr1_jax.terminal import one_line
from sr1_jax.training.settings import RUN, default_config, unknown_setting

_TOPS = (1, 2, 3, 10)
_QUERIES = 256  # searched for at a time
_PAIRS = 32  # scored at a time


class Choices(NamedTuple):
    """How it is trained; see the flags."""

    limit: int = 0
    dev_limit: int = 100
    depth: int = 30
    candidates: int = 8
    batch: int = 8
    epochs: int = 1
    learning_rate: float = 5e-5
    max_tokens: int = 256
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: naming flag and value.
        """
        least = {"limit": 0, "dev_limit": 0, "depth": 2, "candidates": 2, "batch": 1, "epochs": 1}
        least |= {"max_tokens": 1, "seed": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"--{name} must be at least {number}, not {getattr(self, name)}.")
        if self.candidates > self.depth:
            raise ValueError(
                f"--candidates={self.candidates} passages a list cannot be drawn of "
                f"--depth={self.depth} that are found; raise the one or lower the other."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning_rate must be above 0, not {self.learning_rate}.")
        if self.batch % jax.local_device_count():
            raise ValueError(
                f"--batch={self.batch} must be a multiple of the {jax.local_device_count()} "
                "devices, which share each batch."
            )


_HELP = {
    "limit": "Training questions, of each source its share; 0: all.",
    "dev_limit": "Questions of each development file; 0: all.",
    "depth": "Passages found for each question.",
    "candidates": "Passages of a list: a good one, the others bad.",
    "batch": "Lists in a step.",
    "epochs": "Over the questions.",
    "learning_rate": "At its highest.",
    "max_tokens": "Of question and passage; the rest of the passage is cut.",
    "seed": "Of what is drawn.",
}


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("model", None, "Folder of the model to begin with.", **define)
    flags.DEFINE_string("questions", None, "JSON lines; several files with commas.", **define)
    flags.DEFINE_string("corpus", "", "Passages; by default data.corpus.", **define)
    flags.DEFINE_string("index", "", "Folder that keeps an index of them, built where it is not "
                        "there; without it the index is built in memory.", **define)  # fmt: skip
    flags.DEFINE_string("output", None, "Folder for the reranker; new, or empty.", **define)
    flags.DEFINE_string("dev", "", "Development questions; several files with commas.", **define)
    flags.DEFINE_string("report", "", "File for the figures, JSON.", **define)
    for name, default in Choices()._asdict().items():
        defining = flags.DEFINE_float if isinstance(default, float) else flags.DEFINE_integer
        defining(name, default, _HELP[name], **define)
    cli.parse(values, argv, required=("model", "questions", "output"), usage=__doc__)
    with (
        output_path(values.output, "--output") as output,
        output_or_none(values.report, "--report") as report_path,
    ):
        train_reranker(
            local_path(values.model, "--model"),
            local_paths(values.questions, "--questions"),
            output,
            Choices(**{name: values[name].value for name in Choices._fields}),
            retrieval=(default_config() if values.config is None else values.config).retrieval,
            corpus=path_or_none(values.corpus, "--corpus") or _own_corpus(values),
            index=path_or_none(values.index, "--index"),
            dev=local_paths(values.dev, "--dev"),
            report_path=report_path,
        )


def _own_corpus(values: flags.FlagValues) -> Path | None:
    if values.config is None:
        return None
    return path_or_none(values.config.data.corpus, "data.corpus")


def train_reranker(
    model_folder: Path,
    paths: Sequence[Path],
    output: Path,
    choices: Choices,
    *,
    retrieval: Any,
    corpus: Path | None = None,
    index: Path | None = None,
    dev: Sequence[Path] = (),
    report_path: Path | None = None,
) -> dict[str, Any]:
    """Trains a reranker and writes its folder; returns the figures, as `--report` has them.

    Args:
        model_folder: of an encoder or a cross-encoder.
        paths: question files.
        output: must not exist, or be empty; it is written when the training is over.
        choices: see `Choices`.
        retrieval: the section of the settings: what finds passages, without its reranker.
        corpus, index: see `open_retriever`.
        dev: files of development questions.
        report_path: for the figures.

    Raises:
        ValueError, OSError: bad settings, or a fault in a file; found before anything is trained.
        FloatingPointError: the loss is not finite.
    """
    choices.check()
    check_free(output)
    check_retrieval(retrieval)
    if needs_corpus(retrieval) and not (corpus or index):
        raise ValueError("--corpus is missing: a reranker learns from passages.")
    model = start_cross_encoder(model_folder, choices.seed, max_tokens=choices.max_tokens)
    questions = stratified(read_questions(*paths), choices.limit or 10**9, choices.seed)
    dev_of = {}
    for path in dev:
        name = path.name.partition(".")[0]
        if name in dev_of:
            raise ValueError(f"--dev has two files called {name}: rename one, as figures have it.")
        some = read_questions(path)
        dev_of[name] = stratified(some, choices.dev_limit or 10**9, choices.seed)
    _check_apart(questions, dev_of)
    with working("opening the index"):
        retriever = open_retriever(_without_reranker(retrieval), corpus, index)
    report: dict[str, Any] = {"choices": choices._asdict()}
    examples = _examples(retriever, questions, choices, model, report)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in dev_of}
    _measure(rows, "found", retriever, dev_of)
    trained = _train(examples, choices, model, report)
    # Before it is measured, which may take as long as the training.
    with working("writing the reranker"):
        module = nnx.merge(trained.graph, jax.device_get(trained.params))
        save_cross_encoder(module, model_folder, output)
    _measure(rows, "trained", _reranked(retriever, trained, choices), dev_of)
    report["recall"] = {"tops": _TOPS, **rows}
    if report_path is not None:
        write_whole(report_path, json.dumps(report, indent=2) + "\n")
    _print(rows, dev_of)
    print(one_line(f"The reranker is in {output}; retrieval.rerank.model={output} uses it."))
    return report


def _without_reranker(retrieval: Any) -> Any:
    plain = retrieval.copy_and_resolve_references()
    plain.rerank.model = ""
    return plain


def _check_apart(questions: Sequence[Question], dev_of: Mapping[str, Sequence[Question]]) -> None:
    """Refuses development questions that are trained on."""
    trained = {question.question for question in questions}
    for name, some in dev_of.items():
        if same := [q.id for q in some if q.question in trained]:
            raise ValueError(
                f"--dev: {len(same)} questions of {name} are among --questions, such as "
                f"{same[0]}; what is trained on says nothing. Leave them out."
            )


def _search(retriever: Retriever, questions: Sequence[Question], k: int) -> list:
    found = []
    for first in range(0, len(questions), _QUERIES):
        some = [question.question for question in questions[first : first + _QUERIES]]
        found += retriever.search(some, k)
    return found


def _examples(
    retriever: Retriever,
    questions: Sequence[Question],
    choices: Choices,
    model: PairModel,
    report: dict[str, Any],
) -> list[Example]:
    with working(f"searching for {len(questions):,} questions"):
        found = _search(retriever, questions, choices.depth)
    examples, left_out = make_examples(questions, found, choices.candidates)
    fits = PairTokens(model).fits([example.question for example in examples])
    if long := fits.count(False):
        left_out["too long for --max_tokens"] = long
        examples = [example for example, fit in zip(examples, fits) if fit]
    report["questions"], report["left_out"] = len(examples), dict(left_out)
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in left_out.most_common())
    if batches_in(len(examples), choices.batch, choices.epochs) < 1 or len(examples) < 1:
        raise ValueError(
            f"{len(examples)} of {len(questions)} questions teach anything ({reasons}), too few "
            f"for --batch={choices.batch}; give more questions, or a larger --depth."
        )
    print(one_line(f"{len(examples):,} of {len(questions):,} questions teach ({reasons})"))
    return examples


def _train(
    examples: Sequence[Example], choices: Choices, model: PairModel, report: dict[str, Any]
) -> PairModel:
    options = {"batch": choices.batch, "epochs": choices.epochs}
    steps = batches_in(len(examples), **options)
    trainer = RerankerTrainer(
        model, own_devices(), steps=steps, learning_rate=choices.learning_rate
    )
    batches = draw_lists(examples, candidates=choices.candidates, seed=choices.seed, **options)
    figures = []
    with counting(f"training on {len(examples):,} questions", steps) as live:
        for number, lists in enumerate(batches, 1):
            figures.append(trainer.step(lists))
            recent = np.mean(figures[-50:], axis=0)
            live.update(number, loss=recent[0], first=recent[1])
    report["steps"] = [each._asdict() for each in figures]
    report["cut_passages"] = trainer.cut
    if trainer.cut:
        share = trainer.cut / (steps * choices.batch * choices.candidates)
        print(f"{share:.1%} of the passages were longer than --max_tokens={choices.max_tokens}")
    return dataclasses.replace(model, params=trainer.params)


def _reranked(retriever: Retriever, model: PairModel, choices: Choices) -> Reranked:
    return Reranked(retriever, PairScorer(model, own_devices(), _PAIRS), choices.depth)


def _measure(
    rows: dict[str, dict[str, list[float]]],
    key: str,
    retriever: Retriever,
    dev_of: Mapping[str, Sequence[Question]],
) -> None:
    for name, questions in dev_of.items():
        with working(f"searching {name}"):
            found = _search(retriever, questions, max(_TOPS))
        rows[name][key] = answer_recall(questions, found, _TOPS)


def _print(
    rows: Mapping[str, Mapping[str, Sequence[float]]], dev_of: Mapping[str, Sequence[Question]]
) -> None:
    """An answer stands in the first passages, in percent: as found, and as ranked."""
    if not rows:
        return
    width = max(map(len, rows)) + 2
    print(" " * width + "questions  " + "".join(f"{f'top {top}':>16}" for top in _TOPS))
    for name, of_set in rows.items():
        cells = zip(of_set["found"], of_set["trained"])
        shown = "".join(f"{f'{100 * old:.1f} → {100 * new:.1f} %':>16}" for old, new in cells)
        print(one_line(f"{name:<{width}}{len(dev_of[name]):>9}  {shown}"))


if __name__ == "__main__":
    cli.run(main)
