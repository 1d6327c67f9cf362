"""The rollout engine over all processes: each runs its share of the questions, all get all
trajectories."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from sr1_jax.agreement import from_first, gather
from sr1_jax.data.questions import Question, as_question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.environment.watched import Watch
from sr1_jax.rewards.reward import EARNED
from sr1_jax.rollout.engine import Engine, Finished
from sr1_jax.rollout.stats import sum_stats

# Counted by every process for all.
_COMMON = ("decode_calls", "compilations", "cache_gib")
# Of these seconds the longest counts. Others, those of all threads in the calls of tools, add up.
_WALL_SECONDS = (
    "seconds", "decode_seconds", "host_seconds", "tool_wait_seconds", "reshard_seconds",
    "extend_seconds", "fork_seconds",
)  # fmt: skip


class SplitEngine(Engine):
    """An `Engine` to whose `run` every process gives the same questions.

    What comes back is the same in every process, and the same as on a single one: the
    trajectories of all questions, in their order. `stats` are totals over the processes.
    """

    def run(
        self,
        questions: Iterable[Any],
        seed: int = 0,
        samples: int = 1,
        *,
        step: int = 0,
        params: nnx.State | None = None,
        finished: Finished | None = None,
        skip: Collection[tuple[str, int]] = (),
        watch: Watch | None = None,
    ) -> list[Trajectory]:
        """See `Engine.run`; `finished` and `watch` are called in the process that ran the
        question."""
        questions = [as_question(question) for question in questions]
        processes = jax.process_count()
        if processes == 1 or not questions:
            return super().run(
                questions, seed, samples, step=step, params=params, finished=finished, skip=skip,
                watch=watch,
            )  # fmt: skip
        mine = share_of(questions, jax.process_index(), processes)
        trajectories, _ = self._roll_out(mine, seed, samples, step, params, finished, skip, watch)
        parts = gather((trajectories, dict(self.stats)))
        self.stats = total_stats([stats for _, stats in parts])
        trajectories = in_order([t for part, _ in parts for t in part], questions, samples)
        return self._rewarded_once(trajectories, questions)

    def _rewarded_once(
        self, trajectories: Sequence[Trajectory], questions: Sequence[Question]
    ) -> list[Trajectory]:
        """All trajectories, scored together by process 0: a judge is asked once, and a term that
        looks at all of them sees all of them."""
        question_of = {question.id: question for question in questions}
        earned = None
        if jax.process_index() == 0:
            asked = [question_of[t.question_id] for t in trajectories]
            earned = [
                {name: getattr(t, name) for name in EARNED}
                for t in self._rewarded(trajectories, asked)
            ]
        earned = from_first(earned)
        return [dataclasses.replace(t, **fields) for t, fields in zip(trajectories, earned)]


def share_of(questions: Sequence[Question], process: int, processes: int) -> list[Question]:
    """The questions of one process: each, with all its samples and repetitions, is one's alone."""
    number_of = {id: number for number, id in enumerate(dict.fromkeys(q.id for q in questions))}
    return [q for q in questions if number_of[q.id] % processes == process]


def in_order(
    trajectories: Iterable[Trajectory], questions: Sequence[Question], samples: int
) -> list[Trajectory]:
    """Trajectories in the order of their questions, as `Engine.run` returns them."""
    places: dict[str, list[int]] = collections.defaultdict(list)
    for place, question in enumerate(questions):
        places[question.id].append(place)
    # A question that comes again has further samples.
    return sorted(
        trajectories, key=lambda t: (places[t.question_id][t.sample // samples], t.sample)
    )


def total_stats(stats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Stats of all processes: counts are added up, of seconds the longest count."""
    return sum_stats(stats, largest=(*_COMMON, *_WALL_SECONDS))
