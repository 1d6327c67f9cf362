"""What an episode leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sr1_jax.retrieval.base import Passage


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        tag: of the tool.
        request: what the policy asked, stripped.
        record: of the tool's `Observation`; None where the tool failed.
        segment: number of the segment that asked, from 0.
    """

    tag: str
    request: str
    record: Any
    segment: int


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One finished episode; all token arrays have the length of the whole sequence.

    A segment is what the policy wrote in one turn: exactly a contiguous run of `mask` 1.

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
        calls: of tools, in order.
        searches: queries of the search tool, in order.
        passages: what each of them brought back.
        segments: number of segments the policy wrote.
        status: "answered", "truncated" (a budget ran out) or "no_answer".
        well_formed: the format of `protocol.is_well_formed`, kept by the policy's own words.
        golden_answers: of the question.
        invalid_segments: why a segment, by its number from 0, ended without an action that was
            carried out: "malformed" (neither a request nor an answer), "refused" (a call too many)
            or "overflowed" (cut by rollout.max_segment_tokens). One that the context cut off is
            none of them.
        rewards: value of each term of the reward by name, unweighted; of a term with one value a
            segment their sum.
        segment_rewards: float32 [segments], weighted; what belongs to the whole episode is on the
            last one.
        reward: their sum: what the episode trains on.
        trains: whether it trains at all.
        prompt_passages: that stood in the prompt, best first.
        seconds: from the first prefill of its prompt to its last token, by the host's clock; says
            nothing of whether two trajectories are equal.
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
    calls: list[Call]
    searches: list[str]
    passages: list[list[Passage]]
    segments: int
    status: str
    well_formed: bool
    golden_answers: tuple[str, ...]
    invalid_segments: Mapping[int, str] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)
    segment_rewards: np.ndarray | None = None
    reward: float = 0.0
    trains: bool = True
    prompt_passages: list[Passage] = dataclasses.field(default_factory=list)
    seconds: float = dataclasses.field(default=0.0, compare=False)

    @property
    def overflowed_segments(self) -> int:
        """How many segments were cut by rollout.max_segment_tokens."""
        return sum(why == "overflowed" for why in self.invalid_segments.values())
