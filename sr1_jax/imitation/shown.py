"""What a search would show a policy: asked in batches, each query once."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import ml_collections

from sr1_jax.environment import Environment, Observation
from sr1_jax.imitation.wording import as_key
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.observations import escape, merge_passages, render_text
from sr1_jax.protocol.tags import SEARCH, Tags, close_tag
from sr1_jax.retrieval.base import Passage

# Queries of one call: a search service need not take ten thousand at once.
_BATCH = 512


class Doc(NamedTuple):
    """A passage as far as it is shown.

    Attributes:
        rank: from 1.
        title: whole.
        text: as the policy reads it: escaped, the last one perhaps cut.
    """

    rank: int
    title: str
    text: str


class Shown:
    """An observation of the search tool.

    Args:
        observation: of the tool.
        tokenizer: of the policy.
        max_tokens: of an observation.
        tags: none of which survives in it.
    """

    def __init__(self, observation: Observation, tokenizer: Tokenizer, max_tokens: int, tags: Tags):
        self.observation = observation
        self._tokenizer, self._max_tokens, self._tags = tokenizer, max_tokens, tags

    @functools.cached_property
    def passages(self) -> list[Passage]:
        """What was found, whether it is shown or cut off."""
        return merge_passages(self.observation.record.passages)

    @functools.cached_property
    def ids(self) -> list[int]:
        """As the engine feeds them."""
        tag = self._tags.of(SEARCH).observation_tag
        text = self.observation.text
        return render_text(text, tag, self._tokenizer, self._max_tokens, self._tags)

    @functools.cached_property
    def docs(self) -> tuple[Doc, ...]:
        """The passages whose titles are shown whole."""
        lines = self._tokenizer.decode(self.ids).split("\n")[2:]  # after the opening tag
        closing = close_tag(self._tags.of(SEARCH).observation_tag)
        docs = []
        for rank, (passage, line) in enumerate(zip(self.passages, lines), start=1):
            title = escape(passage.title, self._tags)
            head = f"Doc {rank}(Title: {title}) "
            if line.startswith(head):
                # The closing tag stands on the line of a passage that was cut.
                text = line.removeprefix(head).removesuffix(closing)
                docs.append(Doc(rank, title, text))
        return tuple(docs)

    def doc_of(self, title: str) -> Doc | None:
        """The first passage of a title, if it is shown."""
        key = as_key(title)
        if all(as_key(passage.title) != key for passage in self.passages):
            return None  # before anything is rendered
        return next((doc for doc in self.docs if as_key(doc.title) == key), None)


class Searches:
    """Searches by the tool of an environment.

    Args:
        environment: whose search tool is asked.
        tokenizer: of the policy.
        rollout: settings of rollouts.

    Attributes:
        passages: that a search brings back.
    """

    def __init__(
        self, environment: Environment, tokenizer: Tokenizer, rollout: ml_collections.ConfigDict
    ):
        self._environment, self._tokenizer = environment, tokenizer
        self._max_tokens = rollout.max_observation_tokens
        self.passages = rollout.passages
        self._shown: dict[str, Shown] = {}

    def ask(self, queries: Iterable[str]) -> None:
        """Searches for what was not searched for yet, all at once."""
        new = [query for query in dict.fromkeys(queries) if query not in self._shown]
        for start in range(0, len(new), _BATCH):
            some = new[start : start + _BATCH]
            for query, observation in zip(some, self._environment.search.call(some)):
                self._shown[query] = Shown(
                    observation, self._tokenizer, self._max_tokens, self._environment.escaped
                )

    def __getitem__(self, query: str) -> Shown:
        """What a query shows."""
        self.ask([query])
        return self._shown[query]
