"""One question's turns: what happens after each segment the policy writes."""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np

from sr1_jax.data.questions import Question
from sr1_jax.environment.pool import Answer
from sr1_jax.environment.search_tool import SearchRecord
from sr1_jax.environment.tool import Observation
from sr1_jax.environment.trajectory import Call, Trajectory
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.answers import extract_answer, is_well_formed, last_closed
from sr1_jax.protocol.tags import (
    ANSWER,
    SEARCH_TAGS,
    Tags,
    ToolTags,
    close_tag,
    correction,
    open_tag,
    refusal,
)
from sr1_jax.retrieval.base import Passage


class Next(enum.Enum):
    """What an episode waits for."""

    POLICY = "the policy goes on with its segment"
    CALL = "the tool's answer to `request`"
    CORRECTION = "the corrective text, `correction`"
    NOTHING = "the episode is over"


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds in every episode of a run.

    Attributes:
        tokenizer: of the policy.
        max_calls: calls of tools, after which one last segment comes in which none is made.
        max_segment_tokens: of a segment of the policy.
        max_context_tokens: of prompt and response together.
        tags: of the tools.
        calls_of: most calls of single tools, by tag; others have no limit of their own.
    """

    tokenizer: Tokenizer
    max_calls: int
    max_segment_tokens: int
    max_context_tokens: int
    tags: Tags = SEARCH_TAGS
    calls_of: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def correction(self) -> list[int]:
        """Ids shown after a segment without a valid action."""
        return self.tokenizer.encode(correction(self.tags))

    @functools.cached_property
    def tool_of_stop(self) -> dict[str, ToolTags]:
        """The tool that a closing tag hands over to."""
        return {close_tag(tool.request_tag): tool for tool in self.tags.tools}

    @functools.cached_property
    def refusals(self) -> dict[str, list[int]]:
        """Ids shown after a call of a tool whose calls are used up, by its tag."""
        return {tag: self.tokenizer.encode(refusal(tag)) for tag in self.calls_of}


class Episode:
    """Tokens, masks and log-probs of one trajectory while it grows.

    A turn is one segment of the policy; there are at most `max_calls` + 1, and in the last one
    no tool is called. A segment that fills its budget without handing over is a turn without a
    valid action: the corrective text comes, and the remaining turns.

    Where a tool reads thoughts, a thought for which no call is left asks nothing: the policy goes
    on in the same segment, within its budget.

    Args:
        question: that is asked.
        sample: number of this sample among those of the question.
        prompt: token ids.
        rules: of the run.
        number: of the episodes that answer this sample of the question together; 0 is the one that
            becomes a trajectory.
        information: the answer of the search tool that stands in the prompt, if any does.
    """

    def __init__(
        self,
        question: Question,
        sample: int,
        prompt: list[int],
        rules: Rules,
        *,
        number: int = 0,
        information: Answer | None = None,
    ):
        self.question = question
        self.sample = sample
        self.ids = list(prompt)
        self.mask = [0] * len(prompt)
        self.logp = [0.0] * len(prompt)
        self.prompt_length = len(prompt)
        self.tag = self.request = ""  # of the call that is waited for
        self.correction: list[int] = []
        self.rest = ""  # written after a stop that was let pass, in the same token
        self.calls: list[Call] = []
        self.segments: list[list[int]] = [[]]
        self.invalid_segments: dict[int, str] = {}
        self.answer: str | None = None
        self.status: str | None = None
        self.began = self.ended = 0.0  # by the host's clock: first prefill and last token
        self._rules = rules
        self._number = number
        self._asked: Counter[str] = Counter()
        self._information = information

    @property
    def stream(self) -> tuple[int, int]:
        """Random stream: two numbers that depend on the question's id, the sample and the number
        of the episode only."""
        name = f"{self.question.id}\0{self._number}" if self._number else self.question.id
        return zlib.crc32(name.encode()), self.sample

    @property
    def tokens_left(self) -> int:
        """How many tokens the current segment may still sample."""
        return min(
            self._rules.max_segment_tokens - len(self.segments[-1]),
            self._rules.max_context_tokens - len(self.ids),
        )

    def begin(self) -> None:
        """Starts the clock, unless it runs already."""
        self.began = self.began or time.perf_counter()

    def add_sampled(self, tokens: list[int], logp: list[float]) -> None:
        """Appends tokens of the policy to the current segment."""
        if tokens:
            self.ended = time.perf_counter()
        self.ids += tokens
        self.mask += [1] * len(tokens)
        self.logp += logp
        self.segments[-1] += tokens

    def advance(self, stop: str | None) -> Next:
        """Decides what follows, given what the tag automaton found, if anything."""
        rules = self._rules
        last = len(self.segments) > rules.max_calls
        text = "" if stop is None else rules.tokenizer.decode(self.segments[-1])
        tool = rules.tool_of_stop.get(stop)
        if tool is not None and tool.reads_thoughts and (last or self._used_up(tool.tag)):
            self.rest = text.rpartition(stop)[2]
            stop = None
        if stop is None and self.tokens_left > 0:
            return Next.POLICY
        if stop is None:
            if len(self.ids) >= rules.max_context_tokens:
                return self._finish("truncated")
            self._invalid("overflowed")
            return self._finish("truncated") if last else self._correct(rules.correction)
        if stop == close_tag(ANSWER):
            self.answer = extract_answer(text, rules.tags)
            if self.answer is not None:
                return self._finish("answered")
        request = last_closed(text, tool.request_tag, rules.tags) if tool else None
        if last:
            self._invalid("refused" if request else "malformed")
            return self._finish("no_answer")
        if not request:
            self._invalid("malformed")
            return self._correct(rules.correction)
        if self._used_up(tool.tag):
            self._invalid("refused")
            return self._correct(rules.refusals[tool.tag])
        self._asked[tool.tag] += 1
        self.tag, self.request = tool.tag, request
        return Next.CALL

    def _used_up(self, tag: str) -> bool:
        """Whether a tool's own calls are used up."""
        return self._asked[tag] >= self._rules.calls_of.get(tag, self._asked[tag] + 1)

    def answered(self, observation: Observation, ids: list[int]) -> Next:
        """Takes the answer to `request`: what the tool said, and the ids that show it.

        One that leaves no room for another token ends the episode instead.
        """
        segment = len(self.segments) - 1
        self.calls.append(Call(self.tag, self.request, observation.record, segment))
        return self._show(ids)

    def corrected(self) -> Next:
        """Shows `correction`, with the same exception."""
        return self._show(self.correction)

    def _invalid(self, why: str) -> None:
        self.invalid_segments[len(self.segments) - 1] = why

    def _correct(self, ids: list[int]) -> Next:
        self.correction = ids
        return Next.CORRECTION

    def _show(self, ids: list[int]) -> Next:
        if len(self.ids) + len(ids) >= self._rules.max_context_tokens:
            return self._finish("truncated")
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logp += [0.0] * len(ids)
        self.segments.append([])
        return Next.POLICY

    def _finish(self, status: str) -> Next:
        self.status = status
        return Next.NOTHING

    def trajectory(self) -> Trajectory:
        """The finished episode, not yet rewarded."""
        decode, tags = self._rules.tokenizer.decode, self._rules.tags
        policy_text = "".join(decode(segment) for segment in self.segments)
        response_text = decode(self.ids[self.prompt_length :])
        # An observation the policy invented is well-formed to the eye, not to us.
        invented = any(
            write(name) in policy_text
            for name in tags.observation_names
            for write in (open_tag, close_tag)
        )
        found = [call.record for call in self.calls if isinstance(call.record, SearchRecord)]
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
            calls=self.calls,
            searches=[query for record in found for query in record.queries],
            passages=[hits for record in found for hits in record.passages],
            segments=len(self.segments),
            invalid_segments=self.invalid_segments,
            status=self.status,
            well_formed=not invented and is_well_formed(response_text, tags),
            golden_answers=tuple(self.question.golden_answers),
            prompt_passages=self.prompt_passages,
            seconds=self.ended - self.began if self.began else 0.0,
        )

    @property
    def prompt_passages(self) -> list[Passage]:
        """That stand in the prompt: what the search for it found, if there was one."""
        record = self._information.observation.record if self._information else None
        if not isinstance(record, SearchRecord):
            return []
        return [passage for hits in record.passages for passage in hits]
