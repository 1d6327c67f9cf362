"""Groups that teach something: questions whose samples all earn the same are replaced.

Such a group has no advantage, so it only dilutes a step. Its place is taken by further questions,
in further rollouts of the same policy, up to a bound; what is still missing then is filled with the
groups that were dropped, so that a step always trains on the same number.

Source: dynamic sampling of DAPO (arXiv 2503.14476, section 3.2), with two differences: the number
of rollouts is bounded, and a later one draws only as many questions as it is likely to need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.data.stream import Stream
from sr1_jax.environment.trajectory import Trajectory

Group = Sequence[Trajectory]


class Sampled(NamedTuple):
    """Rollouts of a step.

    Attributes:
        questions: all that were rolled out, in order.
        groups: the trajectories of each.
        kept: numbers of the groups to train on, increasing.
        metrics: groups/degenerate, share of all groups whose rewards do not differ;
            groups/degenerate_kept, share of those kept; groups/rollouts, how many there were;
            groups/questions, how many were drawn from the stream.
    """

    questions: list[Question]
    groups: list[Group]
    kept: list[int]
    metrics: dict[str, float]

    @property
    def trained(self) -> list[Trajectory]:
        """The trajectories of the groups to train on."""
        return [trajectory for number in self.kept for trajectory in self.groups[number]]


def sample_groups(
    roll_out: Callable[[Sequence[Question]], Sequence[Group]],
    stream: Stream,
    *,
    count: int,
    extra_rounds: int = 0,
) -> Sampled:
    """Rolls out `count` groups, and replaces those of equal rewards in up to `extra_rounds` more.

    What is drawn depends on the trajectories and the stream's position alone. A question that comes
    again in a later round (the source is small) is passed over: its samples would be the same.

    Args:
        roll_out: questions -> the trajectories of each.
        stream: of training questions.
        count: groups to train on.
        extra_rounds: rollouts after the first, at most.
    """
    questions = stream.take(count)
    drawn, rollouts = count, 1
    groups = list(roll_out(questions))
    useful = [not is_degenerate(group) for group in groups]
    for _ in range(extra_rounds):
        missing = count - sum(useful)
        if missing <= 0:
            break
        # As many as it takes if the share of useful groups stays; no more than in the first round.
        share = max(sum(useful), 1) / len(useful)
        more = stream.take(min(math.ceil(missing / share), count))
        drawn += len(more)
        seen = {question.id for question in questions}
        more = [question for question in _unique(more) if question.id not in seen]
        if not more:
            break
        rollouts += 1
        questions += more
        found = list(roll_out(more))
        groups += found
        useful += [not is_degenerate(group) for group in found]
    order = sorted(range(len(groups)), key=lambda number: (not useful[number], number))
    kept = sorted(order[:count])
    metrics = {
        "groups/degenerate": 1 - sum(useful) / len(useful),
        "groups/degenerate_kept": 1 - sum(useful[number] for number in kept) / count,
        "groups/rollouts": float(rollouts),
        "groups/questions": float(drawn),
    }
    return Sampled(questions, groups, kept, metrics)


def is_degenerate(group: Group) -> bool:
    """Whether those of a group that train have one reward, so that no advantage is left."""
    return len({trajectory.reward for trajectory in group if trajectory.trains}) < 2


def _unique(questions: Sequence[Question]) -> list[Question]:
    return list({question.id: question for question in questions}.values())
