"""Terms with a value a segment: what a search costs or earns, and what was wrong with a turn.

Costs are positive counts, to be given a negative weight. Each counts at the last token of the
segment that it is for, so that with a critic only what led there is charged (rewards at the ends of
turns: MT-PPO, arXiv 2505.11821). Algorithms that compare samples see the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sr1_jax.rewards.matching import normalize_answer
from sr1_jax.rewards.retrieval import gold_segment, queries_of


def retrieval_at_search(trajectory: Any, question: Any) -> np.ndarray:
    """1 on the segment whose search was the first to bring back gold, see `gold_segment`."""
    values = np.zeros(trajectory.segments)
    segment = gold_segment(trajectory, question)
    if segment is not None:
        values[segment] = 1.0
    return values


def search_cost(trajectory: Any, question: Any, *, free: int = 0) -> np.ndarray:
    """Searches of each segment, less the first `free` ones of the episode.

    With rollout.parallel_queries each line of a request is a search of its own.

    Args:
        trajectory: any.
        question: not looked at.
        free: searches that cost nothing.
    """
    values, searched = np.zeros(trajectory.segments), 0
    for call in trajectory.calls:
        for _ in queries_of(call) or ():
            searched += 1
            values[call.segment] += searched > free
    return values


def repeated_queries(trajectory: Any, question: Any) -> np.ndarray:
    """Of each segment, the queries that are equal to an earlier one of the episode.

    Queries are compared as answers are, `normalize_answer`. What other tools were asked is compared
    as it stands, white space aside: signs that mean nothing in a query may mean all in a sum.
    """
    values, asked = np.zeros(trajectory.segments), set()
    for call in trajectory.calls:
        queries = queries_of(call)
        if queries is None:
            keys = [(call.tag, " ".join(call.request.split()))]
        else:
            keys = [(call.tag, _normalized(query)) for query in queries]
        for key in keys:
            values[call.segment] += key in asked
            asked.add(key)
    return values


def _normalized(query: str) -> str:
    # One that normalises to nothing is no other that does so.
    return normalize_answer(query) or " ".join(query.casefold().split())


def invalid_segments(trajectory: Any, question: Any) -> np.ndarray:
    """1 on each segment that ended without an action that was carried out: malformed, refused or
    overflowed, see `Trajectory.invalid_segments`."""
    values = np.zeros(trajectory.segments)
    values[list(trajectory.invalid_segments)] = 1.0
    return values
