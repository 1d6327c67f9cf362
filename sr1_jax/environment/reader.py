"""Reading on the side: the policy reads what a search found in a prompt of its own, and what it
answers there is what the episode that searched is shown.

Source: Reason-in-Documents of Search-o1 (arXiv 2501.05366, section 3.4). There the reader sees the
reasoning so far and refines it; here it sees question and query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sr1_jax.environment.episode import Episode, Rules
from sr1_jax.environment.pool import Answer
from sr1_jax.environment.search_tool import Reading, SearchRecord
from sr1_jax.environment.tool import Observation
from sr1_jax.protocol.observations import escape
from sr1_jax.protocol.prompts import PromptTemplate
from sr1_jax.protocol.tags import SEARCH

# Shown where the reader gave no answer; nothing found is said as everywhere.
NOTHING_READ = "Nothing useful was found."


@dataclasses.dataclass(frozen=True)
class Reader:
    """Makes episodes that read, and of what they wrote observations.

    A reader has one segment and calls no tool. Its words are no part of a trajectory: they are
    shown as an observation is, escaped and within its budget.

    Attributes:
        template: of prompts that read, see `load_template`.
        rules: of its episodes, which make no calls.
        render: (tag, observation) -> token ids.
    """

    template: PromptTemplate
    rules: Rules
    render: Callable[[str, Observation], list[int]]

    def check(self, max_observation_tokens: int) -> None:
        """Refuses a template that leaves no room for a word beside as many tokens of passages.

        Raises:
            ValueError: naming the template and the settings.
        """
        prompt = self.template.render(self.rules.tokenizer, "", [0] * max_observation_tokens)
        most = self.rules.max_context_tokens
        if len(prompt) >= most:
            raise ValueError(
                f"Template {self.template.name} with rollout.max_observation_tokens="
                f"{max_observation_tokens} of passages has {len(prompt)} tokens, which leaves no "
                f"room for a word in rollout.max_context_tokens={most}; raise that, or lower the "
                "other."
            )

    @staticmethod
    def reads(answer: Answer) -> bool:
        """Whether an answer has passages."""
        record = answer.observation.record
        return isinstance(record, SearchRecord) and any(record.passages)

    def episode(self, asking: Episode, answer: Answer) -> Episode | None:
        """An episode that reads an answer for the episode that asked; None where its prompt leaves
        no room for a word.

        Its random stream depends on the question's id, the sample and the number of the call only.
        """
        rules = self.rules
        prompt = self.template.render(
            rules.tokenizer,
            asking.question.question,
            answer.ids,
            # The policy's words are no passages, and must not look like any.
            query=escape(asking.request, rules.tags),
        )
        if len(prompt) >= rules.max_context_tokens:
            return None
        number = len(asking.calls) + 1
        return Episode(asking.question, asking.sample, prompt, rules, number=number)

    def answer(self, answer: Answer, read: Episode | None) -> Answer:
        """What is shown instead of an answer, after it was read.

        Args:
            answer: of the tool.
            read: the finished episode that read it; None where it had no room.
        """
        record, reading = answer.observation.record, None
        if read is not None:
            text = "".join(map(self.rules.tokenizer.decode, read.segments))
            reading = Reading(text, read.answer or None, sum(read.mask))
        shown = NOTHING_READ if reading is None else reading.answer or NOTHING_READ
        observation = Observation(shown, record._replace(reading=reading))
        # Only the search tool leaves a record that is read.
        return Answer(answer.key, observation, self.render(SEARCH, observation))
