"""Asks a set of questions by one engine: shown while it runs, and taken up after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx

from sr1_jax import cli
from sr1_jax.agreement import gather
from sr1_jax.cluster import is_first
from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.evaluation.progress import Live, counting
from sr1_jax.evaluation.spool import Kept, Spool, read_kept
from sr1_jax.rewards import Reward, exact_match
from sr1_jax.rewards.settings import REWARD
from sr1_jax.rollout.split_engine import SplitEngine, in_order

# The figures on the screen change this often at most: episodes come to their ends in bunches, and
# a rate is that of some time.
_REFRESH_SECONDS = 0.5


class Asked(NamedTuple):
    """What came of asking.

    Attributes:
        trajectories: of all questions that fit, question by question, rewarded by exact match.
        seconds: that it took, over all starts.
        stats: of the engine in this start alone.
        taken_up: how many trajectories earlier starts left.
    """

    trajectories: list[Trajectory]
    seconds: float
    stats: Mapping[str, float]
    taken_up: int


def ask(
    engine: SplitEngine,
    questions: Sequence[Question],
    *,
    params: nnx.State,
    seed: int,
    samples: int,
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    what: str,
) -> Asked:
    """Asks questions, but not those that an earlier start has the answers of.

    Of several processes all call it; each keeps what it answers in a file of its own, and all
    return the same. `spool.delete_partial` deletes the files once there is a result.

    Args:
        engine: that answers.
        questions: with different ids.
        params: of the policy.
        seed: of the evaluation.
        samples: episodes a question.
        folder: of results.
        name: of the result.
        facts: JSON-able, that the answers depend on.
        what: is asked, for the screen.

    Raises:
        ValueError: another process is at the same evaluation; or as `Engine.run`.
    """
    began = time.perf_counter()
    kept = _kept_of_all(folder, name, facts, questions, samples)
    fresh = [
        question
        for question in questions
        if any((question.id, sample) not in kept.trajectories for sample in range(samples))
    ]
    total, start = len(questions) * samples, len(kept.trajectories)
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(Spool(folder, name, facts, jax.process_index()))
        live = stack.enter_context(counting(what, total, start=start)) if is_first() else None
        shown = _Shown(live, total, kept.trajectories.values())

        def finished(trajectory: Trajectory, question: Question) -> None:
            spool.add(trajectory, kept.seconds + time.perf_counter() - began)
            shown.add(trajectory)

        run: list[Trajectory] = []
        if fresh:
            run = engine.run(
                fresh,
                seed=seed,
                samples=samples,
                params=params,
                finished=finished,
                skip=kept.trajectories.keys(),
            )
    stats = dict(engine.stats) if fresh else {"seconds": 0.0, "episodes": 0.0}
    return Asked(
        in_order([*run, *_rewarded(kept, questions)], questions, samples),
        kept.seconds + time.perf_counter() - began,
        stats,
        start,
    )


def _kept_of_all(
    folder: Path, name: str, facts: Mapping[str, Any], questions: Sequence[Question], samples: int
) -> Kept:
    """What earlier starts left on any file system, of the episodes that are asked for."""
    parts = gather(read_kept(folder, name, facts))
    everything = {key: t for part in parts for key, t in part.trajectories.items()}
    asked = [(question.id, sample) for question in questions for sample in range(samples)]
    found = {key: everything[key] for key in asked if key in everything}
    if is_first():
        for problem in dict.fromkeys(problem for part in parts for problem in part.problems):
            cli.notice(problem)
        if found:
            cli.notice(f"{len(found)} of {len(asked)} answers are there from an earlier start.")
    return Kept(found, max(part.seconds for part in parts))


def _rewarded(kept: Kept, questions: Sequence[Question]) -> list[Trajectory]:
    """What was kept, rewarded as the engine of an evaluation does, by exact match."""
    by_id = {question.id: question for question in questions}
    trajectories = [
        dataclasses.replace(t, golden_answers=tuple(by_id[t.question_id].golden_answers))
        for t in kept.trajectories.values()
    ]
    reward = Reward(REWARD.defaults(), max((len(t.ids) for t in trajectories), default=1))
    return reward.score(trajectories, [by_id[t.question_id] for t in trajectories])


class _Shown:
    """Keeps the screen up to date: how many are answered, and how many of them right.

    Of several processes, each of which answers its share, the first is taken for all.
    """

    def __init__(self, live: Live | None, total: int, kept: Collection[Trajectory]):
        self._live, self._total, self._kept = live, total, len(kept)
        self._here, self._right = 0, sum(map(_is_right, kept))
        self._updated = time.perf_counter()

    def add(self, trajectory: Trajectory) -> None:
        self._here += 1
        self._right += _is_right(trajectory)
        done = min(self._total, self._kept + self._here * jax.process_count())
        now = time.perf_counter()
        if self._live and (now - self._updated >= _REFRESH_SECONDS or done == self._total):
            self._updated = now
            self._live.update(done, EM=self._right / (self._kept + self._here))


def _is_right(trajectory: Trajectory) -> bool:
    return exact_match(trajectory.answer, trajectory.golden_answers)
