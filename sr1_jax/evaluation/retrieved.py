"""Whether what a trajectory retrieved holds what its question needs.

Passages are those that its searches brought back, and those that stood in its prompt; what the
policy was shown of them, observations being cut to a budget, is not asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards.retrieval import holds_any, open_answers, plain_title, supporting_titles


def passages_of(trajectory: Trajectory) -> Iterator[Passage]:
    """All passages, those of the prompt first."""
    return itertools.chain(trajectory.prompt_passages, *trajectory.passages)


def gold_recall(trajectory: Trajectory, question: Question) -> float:
    """The share of the question's supporting titles that passages have.

    Args:
        trajectory: of the question.
        question: `metadata["supporting_titles"]` names the titles.

    Returns:
        From 0 to 1; NaN where no titles are known.

    Raises:
        ValueError: the titles are no list of strings; names the question.
    """
    wanted = {plain_title(title) for title in supporting_titles(question)}
    if not wanted:
        return math.nan
    found = {plain_title(passage.title) for passage in passages_of(trajectory)}
    return len(wanted & found) / len(wanted)


def answer_retrieved(trajectory: Trajectory, question: Question) -> float:
    """Whether a golden answer stands in a passage, in whole words of the normalised texts.

    Returns:
        1 or 0; NaN where all golden answers are such as "yes" and "no".
    """
    answers = open_answers(question)
    if not answers:
        return math.nan
    return float(any(holds_any(passage, answers) for passage in passages_of(trajectory)))
