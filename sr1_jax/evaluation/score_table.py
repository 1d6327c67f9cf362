"""The scores of an evaluation, trajectory by trajectory, in memory and in a file.

From it come means, intervals, and, whenever two results are on the same questions, the interval of
their difference.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.retrieved import answer_retrieved, gold_recall
from sr1_jax.evaluation.scores import SCORES
from sr1_jax.evaluation.votes import ks_of, majority, pass_at_k
from sr1_jax.paths import replacing
from sr1_jax.rewards import exact_match


class QuestionScore(NamedTuple):
    """A score that evaluations alone have.

    Attributes:
        key: in results.
        of: the number of a trajectory and its question; NaN where it has none.
        heading: of its column in tables.
        digits: after the point, in tables.
        of_passages: whether it is of what was retrieved: methods that retrieve nothing have none.
    """

    key: str
    of: Callable[[Trajectory, Question], float]
    heading: str
    digits: int = 3
    of_passages: bool = False


JUDGE = "judge"
QUESTION_SCORES = (
    QuestionScore("gold_recall", gold_recall, "gold", of_passages=True),
    QuestionScore("answer_retrieved", answer_retrieved, "found", of_passages=True),
    QuestionScore("latency_seconds", lambda t, _: getattr(t, "seconds", np.nan), "sec", 2),
)


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores by trajectory, question by question.

    Attributes:
        question_ids: of each trajectory.
        samples: number of each among those of its question.
        columns: by key, float64 [trajectories]; NaN where a trajectory has no such score.
        by_question: by key, float64 [questions], of several samples together, in the order in
            which the questions first come.
    """

    question_ids: tuple[str, ...]
    samples: tuple[int, ...]
    columns: Mapping[str, np.ndarray]
    by_question: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def questions(self) -> tuple[str, ...]:
        """Ids of the questions, each once."""
        return tuple(dict.fromkeys(self.question_ids))

    def values(self, key: str) -> dict[str, np.ndarray]:
        """The values of a score by question, as `intervals` take them.

        Raises:
            KeyError: there is no such score.
        """
        if key in self.by_question:
            return {q: row[None] for q, row in zip(self.questions, self.by_question[key])}
        rows: dict[str, list[float]] = {}
        for question, value in zip(self.question_ids, self.columns[key]):
            rows.setdefault(question, []).append(value)
        return {question: np.array(row) for question, row in rows.items()}

    def all_values(self) -> dict[str, np.ndarray]:
        """Every score that any trajectory has, float64 [questions, samples] in the order of
        `questions`, with NaN for samples that a question lacks."""
        numbers = {question: number for number, question in enumerate(self.questions)}
        row_N = np.array([numbers[question] for question in self.question_ids], int)
        # The how-manieth of its question each trajectory is.
        order_N = np.argsort(row_N, kind="stable")
        starts_N = np.searchsorted(row_N[order_N], row_N[order_N])
        place_N = np.empty_like(row_N)
        place_N[order_N] = np.arange(len(row_N)) - starts_N
        shape = len(numbers), int(place_N.max(initial=0)) + 1
        found = {}
        for key, column in self.columns.items():
            if not _unknown(column):
                found[key] = np.full(shape, np.nan)
                found[key][row_N, place_N] = column
        return found | {key: column[:, None] for key, column in self.by_question.items()}

    def of_trajectory(self, number: int) -> dict[str, float]:
        """The scores that a trajectory has."""
        found = {key: float(column[number]) for key, column in self.columns.items()}
        return {key: value for key, value in found.items() if not np.isnan(value)}

    def means(self) -> dict[str, float]:
        """The mean of every score over those that have one; what none has is left out."""
        every = {**self.columns, **self.by_question}
        return {k: float(np.nanmean(column)) for k, column in every.items() if not _unknown(column)}


def score_table(
    trajectories: Sequence[Trajectory],
    questions: Sequence[Question],
    *,
    retrieves: bool,
    judged: Sequence[bool] | None = None,
) -> ScoreTable:
    """Scores trajectories.

    Args:
        trajectories: question by question, the samples of each in order.
        questions: among them those of the trajectories.
        retrieves: whether the method retrieves.
        judged: what a judge says of each trajectory, if one was asked.
    """
    by_id = {question.id: question for question in questions}
    asked = [by_id[trajectory.question_id] for trajectory in trajectories]
    columns = {one.key: [float(one.of(t)) for t in trajectories] for one in SCORES}
    if judged is not None:
        columns[JUDGE] = [float(right) for right in judged]
    for one in QUESTION_SCORES:
        if retrieves or not one.of_passages:
            columns[one.key] = [float(one.of(t, q)) for t, q in zip(trajectories, asked)]
    return ScoreTable(
        tuple(t.question_id for t in trajectories),
        tuple(t.sample for t in trajectories),
        {key: np.array(column, np.float64) for key, column in columns.items()},
        _of_samples(trajectories),
    )


def score_path(result: Path) -> Path:
    """The file of scores beside the file of a result."""
    return result.with_name(f"{result.name.removesuffix('.json')}.scores.npz")


def write_scores(path: Path, table: ScoreTable) -> None:
    """Writes a table of scores, whole or not at all."""
    arrays = {f"trajectory/{key}": column for key, column in table.columns.items()}
    arrays |= {f"question/{key}": column for key, column in table.by_question.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            # As bytes: arrays of text would hold no id that ends in a null character.
            ids=np.frombuffer("\n".join(map(_escaped, table.question_ids)).encode(), np.uint8),
            samples=np.array(table.samples, np.int64),
            **arrays,
        )


def read_scores(path: Path) -> ScoreTable:
    """What `write_scores` wrote.

    Raises:
        ValueError: there is no such file, or it is damaged; says how to get one.
    """
    again = "evaluate again for intervals and differences"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        lines = arrays.pop("ids").tobytes().decode().split("\n")
        samples = tuple(arrays.pop("samples").tolist())
        parts: dict[str, dict[str, np.ndarray]] = {"trajectory": {}, "question": {}}
        for key, column in arrays.items():
            part, _, name = key.partition("/")
            parts[part][name] = column
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file of scores; {again}.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); {again}.") from error
    ids = tuple(map(_unescaped, lines)) if samples else ()
    return ScoreTable(ids, samples, parts["trajectory"], parts["question"])


def _of_samples(trajectories: Sequence[Trajectory]) -> dict[str, np.ndarray]:
    """pass@k and majority@n of each question, where each has several samples."""
    rows: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        rows.setdefault(trajectory.question_id, []).append(trajectory)
    count = min(map(len, rows.values()), default=0)
    if count < 2:
        return {}
    found: dict[str, list[float]] = {}
    for row in rows.values():
        golden = row[0].golden_answers
        correct = sum(exact_match(t.answer, golden) for t in row)
        for k in ks_of(count):
            found.setdefault(f"pass@{k}", []).append(pass_at_k(len(row), correct, k))
        winner = majority([t.answer for t in row])
        found.setdefault(f"majority@{count}", []).append(float(exact_match(winner, golden)))
    return {key: np.array(column, np.float64) for key, column in found.items()}


def _unknown(column: np.ndarray) -> bool:
    return bool(np.isnan(column).all())


def _escaped(id: str) -> str:
    return id.encode("unicode_escape").decode("ascii")


def _unescaped(line: str) -> str:
    return line.encode("ascii").decode("unicode_escape")
