"""What a reranker learns from: a question, passages that answer it, and others found with them.

Which passages answer a question nobody has marked: those are taken that hold a golden answer, as in
distant supervision (Karpukhin et al. 2020, arXiv 2004.04906, section 4.1). Where the question names
pages that support it, and a passage of one of them holds the answer, other passages that hold it
are neither good nor bad: "Paris" stands in many.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards.retrieval import holds_any, open_answers, plain_title, supporting_titles

# Why a question teaches nothing.
CLOSED = "answered yes or no"
NOT_FOUND = "no passage found holds an answer"
TOO_FEW = "too few passages found hold none"


class Example(NamedTuple):
    """A question with passages that a search found for it.

    Attributes:
        question: its text.
        good: hold an answer; at least one.
        bad: hold none, and are of no page that supports it; in the order in which they were found.
    """

    question: str
    good: tuple[Passage, ...]
    bad: tuple[Passage, ...]


def make_examples(
    questions: Sequence[Question], found: Sequence[Sequence[Passage]], candidates: int
) -> tuple[list[Example], collections.Counter[str]]:
    """The examples of questions, and how many questions gave none for which reason.

    Args:
        questions: metadata["supporting_titles"] counts where it is there.
        found: passages of each.
        candidates: passages a list has: a good one, the others bad.
    """
    examples, left_out = [], collections.Counter()
    for question, passages in zip(questions, found, strict=True):
        made = _example(question, passages, candidates)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            examples.append(made)
    return examples, left_out


def _example(question: Question, passages: Sequence[Passage], candidates: int) -> Example | str:
    answers = open_answers(question)
    if not answers:
        return CLOSED
    titles = {plain_title(title) for title in supporting_titles(question)}
    holding = [passage for passage in passages if holds_any(passage, answers)]
    if not holding:
        return NOT_FOUND
    vouched = [passage for passage in holding if plain_title(passage.title) in titles]
    bad = [
        passage
        for passage in passages
        if plain_title(passage.title) not in titles and passage not in holding
    ]
    if len(bad) < candidates - 1:
        return TOO_FEW
    return Example(question.question, tuple(vouched or holding), tuple(bad))


class Lists(NamedTuple):
    """A batch: for each question a list of passages, the good one first.

    Attributes:
        questions: their texts.
        passages: `candidates` of each.
    """

    questions: list[str]
    passages: list[list[Passage]]


def draw_lists(
    examples: Sequence[Example], *, batch: int, candidates: int, epochs: int, seed: int
) -> Iterator[Lists]:
    """Batches over all examples, in a new order each epoch, with passages drawn anew.

    What does not fill a batch at the end of an epoch is left for the next.

    Args:
        examples: at least `batch`.
        batch: questions.
        candidates: passages of each.
        epochs: over the examples.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(epochs):
        order += rng.permutation(len(examples)).tolist()
        while len(order) >= batch:
            rows, order = [examples[i] for i in order[:batch]], order[batch:]
            yield Lists(
                [row.question for row in rows], [_list(row, candidates, rng) for row in rows]
            )


def batches_in(examples: int, batch: int, epochs: int) -> int:
    """How many batches `draw_lists` gives."""
    return examples * epochs // batch


def _list(example: Example, candidates: int, rng: np.random.Generator) -> list[Passage]:
    good = example.good[rng.integers(len(example.good))]
    bad = rng.choice(len(example.bad), candidates - 1, replace=False)
    return [good, *(example.bad[i] for i in bad)]


def answer_recall(
    questions: Sequence[Question], found: Sequence[Sequence[Passage]], tops: Sequence[int]
) -> list[float]:
    """The share of questions with an answer in their first passages, in whole words.

    Args:
        questions: those answered yes or no are left out; without any other the share is NaN.
        found: passages of each, best first.
        tops: numbers of first passages.

    Returns:
        A share for each of `tops`.
    """
    ranks = []
    for question, passages in zip(questions, found, strict=True):
        if answers := open_answers(question):
            holding = (rank for rank, p in enumerate(passages, 1) if holds_any(p, answers))
            ranks.append(next(holding, math.inf))
    if not ranks:
        return [math.nan] * len(tops)
    return [float(np.mean([rank <= top for rank in ranks])) for top in tops]
