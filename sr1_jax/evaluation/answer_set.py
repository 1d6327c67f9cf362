"""One method on one set of questions: asked, judged, scored, written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx

from sr1_jax.agreement import from_first, wait_for_all
from sr1_jax.cli import notice
from sr1_jax.cluster import is_first
from sr1_jax.data.jsonl import read_jsonl
from sr1_jax.data.questions import Question
from sr1_jax.environment import Trajectory
from sr1_jax.evaluation import rejection, results
from sr1_jax.evaluation.answering import ask
from sr1_jax.evaluation.finished import FinishedResults
from sr1_jax.evaluation.grid import Entry
from sr1_jax.evaluation.judgements import Judgements
from sr1_jax.evaluation.methods import needs_retriever, prompt_fingerprint
from sr1_jax.evaluation.options import Options
from sr1_jax.evaluation.outcome import outcome
from sr1_jax.evaluation.progress import working
from sr1_jax.evaluation.spool import delete_partial
from sr1_jax.evaluation.trajectory_log import write_rows
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.rewards.judge import Item, Judge
from sr1_jax.rollout import SplitEngine


class QuestionFile(NamedTuple):
    """The questions of a file, and what results call them."""

    name: str
    questions: list[Question]
    sha256: str


class Subject(NamedTuple):
    """What is evaluated, and by what means.

    Attributes:
        config: of the run.
        options: of the evaluation.
        folder: of results.
        params: of the policy.
        tokenizer: of the policy.
        origin: of the policy, in words.
        weights: fingerprint of `params`.
        judge: asked by the first process; None: no answer is judged.
        finished: results that an earlier start of this evaluation has written.
    """

    config: ml_collections.ConfigDict
    options: Options
    folder: Path
    params: nnx.State
    tokenizer: Tokenizer
    origin: str
    weights: str
    judge: Judge | None
    finished: FinishedResults


def answer_set(
    subject: Subject,
    make_engine: Callable[[], SplitEngine],
    method: str,
    file: QuestionFile,
    settings: Mapping[str, Any],
    changes: results.Changes | None,
) -> Entry:
    """The result of a method on a set, which the first process writes.

    Args:
        subject: see `Subject`.
        make_engine: makes the engine of the method; not called where the result is there already.
        method: how questions are answered.
        file: the set.
        settings: that answers depend on.
        changes: of them, that differ from the run's; None if there is no run.
    """
    options = subject.options
    about = {
        "questions": file.name,
        "questions_sha256": file.sha256,
        "method": method,
        **{key: getattr(options, key) for key in ("greedy", "samples", "limit")},
        "policy": subject.origin,
        "settings_changed": changes,
        **({"judge_model": options.judge_model} if options.judge else {}),
    }
    name = results.result_name(about, settings)
    if entry := from_first(subject.finished.find(name)):
        notice_once(f"{file.name} is answered by {method} already, by an earlier start.")
        delete_partial(subject.folder, name)
        return entry
    asked = ask(
        make_engine(),
        file.questions,
        params=subject.params,
        seed=subject.config.seed + 1,
        samples=options.samples,
        folder=subject.folder,
        name=name,
        facts={
            "settings": settings,
            "prompt": prompt_fingerprint(subject.config, method),
            "weights": subject.weights,
            "questions": file.sha256,
            "samples": options.samples,
        },
        what=f"answering {len(file.questions)} questions of {file.name} by {method}",
    )
    judged = _judged(subject, asked.trajectories, file.questions) if options.judge else None
    result, table = outcome(
        asked,
        file.questions,
        about=about,
        retrieves=needs_retriever(subject.config, method),
        judged=judged,
    )
    if is_first():
        if options.keeps_examples(method):
            result |= rejection.write_examples(subject.folder, name, asked.trajectories)
        results.write_result(
            subject.folder, name, result, asked.trajectories, subject.tokenizer, table
        )
        subject.finished.add(name)
    wait_for_all()
    delete_partial(subject.folder, name)
    return Entry(name, result, table)


def join_examples(path: Path, folder: Path, names: Iterable[str]) -> None:
    """Writes the examples of several results to one file, and says how many there are."""
    rows = [row for name in names for _, row in read_jsonl(rejection.examples_path(folder, name))]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, rows)
    notice_once(f"{path} has {len(rows)} correct episodes.")


def notice_once(text: str) -> None:
    """A notice by the first of all processes."""
    if is_first():
        notice(text)


def _judged(
    subject: Subject, trajectories: Sequence[Trajectory], questions: Sequence[Question]
) -> list[bool]:
    """What the judge says of each trajectory; the first process asks for all."""
    verdicts = None
    if jax.process_index() == 0:
        text_of = {question.id: question.question for question in questions}
        items = [Item(text_of[t.question_id], t.answer, t.golden_answers) for t in trajectories]
        judgements = Judgements(subject.folder / "judgements.jsonl", subject.options.judge_model)
        with working(f"judging {len(items)} answers by {subject.options.judge_model}"):
            verdicts = judgements.scores(subject.judge, items)
    return from_first(verdicts)
