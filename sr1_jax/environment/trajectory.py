"""What a rollout leaves behind."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sr1_jax.retrieval.base import Passage


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One finished episode; all arrays have the length of the whole sequence.

    Attributes:
        question_id: id of the question.
        sample: number of this sample among those of the question.
        ids: int32, prompt and response as fed and sampled; never re-tokenised.
        mask: int32, 1 exactly on tokens the policy sampled.
        logp: float32, behaviour log-probability of each sampled token, 0 elsewhere.
        prompt_length: number of prompt tokens.
        response_text: everything after the prompt, observations included.
        policy_text: only what the policy wrote; the reward looks at nothing else.
        answer: the final answer, stripped, or None.
        searches: queries, in order.
        passages: what each search brought back.
        segments: number of segments the policy wrote.
        status: "answered", "truncated" (a budget ran out) or "no_answer".
        well_formed: the format of `protocol.is_well_formed`, kept by the policy's own words.
        golden_answers: of the question.
        reward: what it trains on, penalties included.
        rewards: unweighted value of each term of the reward, by name.
        segment_rewards: float32, weighted, one for each segment; they sum to `reward`.
        trains: False leaves it out of training.
        calls: of tools, in order.
    """

    question_id: str
    sample: int
    ids: np.ndarray
    mask: np.ndarray
    logp: np.ndarray
    prompt_length: int
    response_text: str
    policy_text: str
    answer: str | None
    searches: list[str]
    passages: list[list[Passage]]
    segments: int
    status: str
    well_formed: bool
    golden_answers: tuple[str, ...]
    reward: float
    rewards: dict[str, float] = dataclasses.field(default_factory=dict)
    segment_rewards: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    trains: bool = True
    calls: list[Any] = dataclasses.field(default_factory=list)
