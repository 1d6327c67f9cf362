"""Scores of a set of trajectories: what is counted of each, and what tables call it."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.rewards import exact_match, f1_score, substring_match


class Score(NamedTuple):
    """A score: one number a trajectory, of which the mean is given.

    Attributes:
        key: in results and metrics.
        of: the number of a trajectory.
        heading: of its column in tables; "": it has none.
        digits: after the point, in tables.
        brief: whether the short table at the end of a run shows it too.
    """

    key: str
    of: Callable[[Trajectory], float]
    heading: str = ""
    digits: int = 3
    brief: bool = False


# The more a score tells, the further up it stands: narrow tables leave out the last ones.
SCORES = (
    Score("em", lambda t: exact_match(t.answer, t.golden_answers), "EM", brief=True),
    Score("f1", lambda t: f1_score(t.answer, t.golden_answers), "F1"),
    Score("substring", lambda t: substring_match(t.answer, t.golden_answers), "substr"),
    Score("searches", lambda t: len(t.searches), "search", 2, brief=True),
    Score("response_tokens", lambda t: len(t.ids) - t.prompt_length, "tokens", 1),
    Score("well_formed", lambda t: t.well_formed, "format"),
    Score("truncated", lambda t: t.status == "truncated", "trunc"),
    Score("policy_tokens", lambda t: t.mask.sum()),
    Score("segments", lambda t: t.segments),
    Score("answered", lambda t: t.status == "answered"),
    Score("no_answer", lambda t: t.status == "no_answer"),
)


def score(
    trajectories: Sequence[Trajectory], hops: Sequence[int] | None = None
) -> dict[str, float]:
    """Means over trajectories.

    Args:
        trajectories: at least one.
        hops: number of hops of each question, where it is known; adds exact match by hops.

    Returns:
        Every score of `SCORES` by its key, and em_1_hop and so on.
    """
    values = {one.key: [float(one.of(t)) for t in trajectories] for one in SCORES}
    means = {key: float(np.mean(found)) for key, found in values.items()}
    return means | means_by(values["em"], hops or (), "em_{}_hop".format)


def score_of_those_run(
    trajectories: Sequence[Trajectory], questions: Sequence[Question]
) -> dict[str, float]:
    """`score` where some questions were left out (rollout.long_prompts="skip").

    Questions of several sources add exact match by source, as em/nq, and em_macro: the mean in
    which each source counts the same. Questions whose metadata has a kind add em/kind/two_hop and
    so on.

    Args:
        trajectories: one or more a question that was run.
        questions: all, whose prompts fit or not.

    Raises:
        ValueError: none was run.
    """
    if not trajectories:
        raise ValueError(
            f"None of {len(questions)} questions fits; raise rollout.max_context_tokens."
        )
    by_id = {question.id: question for question in questions}
    run = [by_id[trajectory.question_id] for trajectory in trajectories]
    scores = score(trajectories, hops_of(run))
    sources = [question.source for question in run]
    kinds = [question.metadata.get("kind") for question in run]
    exact = [float(exact_match(t.answer, t.golden_answers)) for t in trajectories]
    if all(isinstance(kind, str) for kind in kinds):
        scores |= means_by(exact, kinds, "em/kind/{}".format)
    if len(set(sources)) > 1:
        by_source = means_by(exact, sources, "em/{}".format)
        scores |= by_source | {"em_macro": float(np.mean(list(by_source.values())))}
    return scores


def means_by(
    values: Sequence[float], parts: Sequence, key_of: Callable[[object], str]
) -> dict[str, float]:
    """Means of the values of each part.

    Args:
        values: one each.
        parts: what each belongs to.
        key_of: part -> key of its mean.
    """
    of_part = collections.defaultdict(list)
    for value, part in zip(values, parts):
        of_part[part].append(value)
    return {key_of(part): float(np.mean(of_part[part])) for part in sorted(of_part)}


def hops_of(questions: Iterable[Question]) -> list[int] | None:
    """Number of hops of each question, or None where the data does not say."""
    hops = [question.metadata.get("hops") for question in questions]
    return None if None in hops else hops


def standard_error(share: float, count: int) -> float:
    """Standard error of a share of `count` independent questions."""
    return float(np.sqrt(share * (1 - share) / count))


def clustered_standard_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Standard error of the mean of values of which those of a cluster depend on each other.

    That of a mean of cluster means, for clusters of one size: sqrt(sum((m_c - m)^2)) / C, with the
    mean m_c of cluster c of C. With one value a cluster, 0 or 1, it is `standard_error`.

    Args:
        values: one a trajectory.
        clusters: the question of each.
    """
    means = list(means_by(values, clusters, str).values())
    return float(np.std(means) / np.sqrt(len(means)))


def questions_sha256(questions: Iterable[Question]) -> str:
    """A hash of a set of questions, whatever their order: results on equal sets may be compared."""
    asked = sorted((question.id, question.question) for question in questions)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
