"""The host side of one episode: what happens after each segment the policy writes."""

from __future__ import annotations

import dataclasses
import enum
import zlib

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.answers import extract_answer, extract_queries, is_well_formed
from sr1_jax.protocol.tags import ANSWER, INFORMATION, SEARCH, close_tag, open_tag
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import outcome_reward


class Next(enum.Enum):
    """What an episode waits for."""

    POLICY = "the policy goes on with its segment"
    SEARCH = "passages for `queries`"
    CORRECTION = "the corrective observation"
    NOTHING = "the episode is over"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Budgets in tokens, the number of searches, and whether each line of one is a query."""

    max_searches: int
    max_segment_tokens: int
    max_context_tokens: int
    parallel_queries: bool = False


class Episode:
    """Tokens, masks and log-probs of one trajectory while it grows.

    A turn is one segment of the policy; there are at most `max_searches` + 1, and in the last
    one a search is refused.
    """

    def __init__(self, question: Question, sample: int, prompt: list[int], limits: Limits):
        self.question = question
        self.sample = sample
        self.ids = list(prompt)
        self.mask = [0] * len(prompt)
        self.logp = [0.0] * len(prompt)
        self.prompt_length = len(prompt)
        self.queries: list[str] = []
        self.searches: list[str] = []
        self.passages: list[list[Passage]] = []
        self.segments: list[list[int]] = [[]]
        self.answer: str | None = None
        self.status: str | None = None
        self._limits = limits

    @property
    def stream(self) -> tuple[int, int]:
        """Random stream: two numbers that depend on the question's id and the sample only."""
        return zlib.crc32(self.question.id.encode()), self.sample

    @property
    def tokens_left(self) -> int:
        """How many tokens the current segment may still sample."""
        return min(
            self._limits.max_segment_tokens - len(self.segments[-1]),
            self._limits.max_context_tokens - len(self.ids),
        )

    def add_sampled(self, tokens: list[int], logp: list[float]) -> None:
        """Appends tokens of the policy to the current segment."""
        self.ids += tokens
        self.mask += [1] * len(tokens)
        self.logp += logp
        self.segments[-1] += tokens

    def advance(self, stop: str | None, tokenizer: Tokenizer) -> Next:
        """Decides what follows, given what the tag automaton found, if anything."""
        if stop is None:
            return Next.POLICY if self.tokens_left > 0 else self._finish("truncated")
        text = tokenizer.decode(self.segments[-1])
        last = len(self.segments) > self._limits.max_searches
        if stop == close_tag(ANSWER):
            self.answer = extract_answer(text)
            if self.answer is not None:
                return self._finish("answered")
        if last:
            return self._finish("no_answer")
        queries = extract_queries(text) if stop == close_tag(SEARCH) else []
        if not queries:
            return Next.CORRECTION
        self.queries = queries if self._limits.parallel_queries else [" ".join(queries)]
        return Next.SEARCH

    def observe(self, observation: list[int], passages: list[list[Passage]] | None) -> Next:
        """Appends an observation, `passages` being those of each query it answers, if any.

        One that leaves no room for another token ends the episode instead.
        """
        if passages is not None:
            self.searches += self.queries
            self.passages += passages
        if len(self.ids) + len(observation) >= self._limits.max_context_tokens:
            return self._finish("truncated")
        self.ids += observation
        self.mask += [0] * len(observation)
        self.logp += [0.0] * len(observation)
        self.segments.append([])
        return Next.POLICY

    def _finish(self, status: str) -> Next:
        self.status = status
        return Next.NOTHING

    def trajectory(self, tokenizer: Tokenizer, *, metric: str, format_weight: float) -> Trajectory:
        """The finished episode with its reward."""
        policy_text = "".join(tokenizer.decode(segment) for segment in self.segments)
        response_text = tokenizer.decode(self.ids[self.prompt_length :])
        # An information block the policy invented is well-formed to the eye, not to us.
        well_formed = (
            open_tag(INFORMATION) not in policy_text
            and close_tag(INFORMATION) not in policy_text
            and is_well_formed(response_text)
        )
        return Trajectory(
            question_id=self.question.id,
            sample=self.sample,
            ids=np.array(self.ids, np.int32),
            mask=np.array(self.mask, np.int32),
            logp=np.array(self.logp, np.float32),
            prompt_length=self.prompt_length,
            response_text=response_text,
            policy_text=policy_text,
            answer=self.answer,
            searches=self.searches,
            passages=self.passages,
            segments=len(self.segments),
            status=self.status,
            well_formed=well_formed,
            golden_answers=tuple(self.question.golden_answers),
            reward=outcome_reward(
                self.answer,
                self.question.golden_answers,
                well_formed,
                metric=metric,
                format_weight=format_weight,
            ),
        )
