"""Episodes that tell, while they run, what they get: for somebody who reads along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.environment.episode import Episode, Next, Rules
from sr1_jax.environment.pool import Answer
from sr1_jax.environment.tool import Observation
from sr1_jax.models.tokenizer import TextStream
from sr1_jax.retrieval.base import Passage


class Began(NamedTuple):
    """The prompt is in its slot.

    Attributes:
        passages: that stand in the prompt, best first.
    """

    passages: list[Passage]


class Wrote(NamedTuple):
    """The policy wrote.

    Attributes:
        text: what is new; whole characters.
    """

    text: str


class Called(NamedTuple):
    """A segment of the policy ended with a call.

    Attributes:
        tag: of the tool.
        request: what it asks, stripped.
    """

    tag: str
    request: str


class Shown(NamedTuple):
    """Something that the policy did not write was put into its context.

    Attributes:
        text: as the policy reads it; "" where it left no room for another word, which ends the
            episode.
        tag: of the tool that said it; "" for a corrective text.
        record: of the tool's `Observation`.
    """

    text: str
    tag: str = ""
    record: Any = None


Event = Began | Wrote | Called | Shown

# Told of what an episode got: its question, the number of its sample, and what it is.
Watch = Callable[[Question, int, Event], None]


class WatchedEpisode(Episode):
    """An `Episode` that tells what it gets, as soon as it has it.

    The texts of `Wrote` joined are the trajectory's `policy_text`; with those of `Shown` between
    them they are its `response_text`.

    Args:
        watch: is told, between two calls of the device.
        others: see `Episode`.
    """

    def __init__(
        self,
        question: Question,
        sample: int,
        prompt: list[int],
        rules: Rules,
        *,
        watch: Watch,
        information: Answer | None = None,
    ):
        super().__init__(question, sample, prompt, rules, information=information)
        self._watch = watch
        self._written = TextStream(rules.tokenizer)

    def begin(self) -> None:
        again = bool(self.began)  # after a reader had its slot
        super().begin()
        if not again:
            self._tell(Began(self.prompt_passages))

    def add_sampled(self, tokens: list[int], logp: list[float]) -> None:
        super().add_sampled(tokens, logp)
        self._tell_written(self._written.add(tokens))

    def advance(self, stop: str | None) -> Next:
        follows = super().advance(stop)
        if follows is not Next.POLICY:
            self._tell_written(self._written.end())
        if follows is Next.CALL:
            self._tell(Called(self.tag, self.request))
        return follows

    def answered(self, observation: Observation, ids: list[int]) -> Next:
        before = len(self.ids)
        follows = super().answered(observation, ids)
        self._tell(Shown(self._since(before), self.tag, observation.record))
        return follows

    def corrected(self) -> Next:
        before = len(self.ids)
        follows = super().corrected()
        self._tell(Shown(self._since(before)))
        return follows

    def _since(self, place: int) -> str:
        return self._rules.tokenizer.decode(self.ids[place:])

    def _tell_written(self, text: str) -> None:
        if text:
            self._tell(Wrote(text))

    def _tell(self, event: Event) -> None:
        self._watch(self.question, self.sample, event)
