"""The environment of a run: its tools, its prompt, what episodes earn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from sr1_jax.environment.search_tool import SearchTool
from sr1_jax.environment.settings import CallOptions
from sr1_jax.environment.tool import Tool, make_tools, tags_of
from sr1_jax.protocol.prompts import PromptTemplate, load_template
from sr1_jax.protocol.tags import SEARCH, Tags
from sr1_jax.retrieval.base import Retriever
from sr1_jax.rewards import Reward
from sr1_jax.rewards.settings import REWARD


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a policy acts on.

    Attributes:
        tools: that the policy may call.
        search: asked for the passages of a prompt that has a place for them.
        template: of prompts.
        reward: of episodes.
        options: how tools are called, by tag; the defaults for those that are not in it.
        reader: of prompts in which the policy reads what a search found; what it answers there is
            shown instead. None: passages are shown.
    """

    tools: tuple[Tool, ...]
    search: SearchTool
    template: PromptTemplate
    reward: Reward
    options: Mapping[str, CallOptions] = dataclasses.field(default_factory=dict)
    reader: PromptTemplate | None = None

    @functools.cached_property
    def tags(self) -> Tags:
        """Of the tools."""
        return tags_of(self.tools)

    @functools.cached_property
    def called(self) -> tuple[Tool, ...]:
        """All tools that the pool may be asked for, that of prompts among them."""
        has_search = any(tool.tag == SEARCH for tool in self.tools)
        if has_search or not self.template.wants_information:
            return self.tools
        return (*self.tools, self.search)

    @functools.cached_property
    def escaped(self) -> Tags:
        """Of all tools that are called: none of these tags survives in an observation."""
        return tags_of(self.called)

    @classmethod
    def of_search(
        cls,
        retriever: Retriever | None,
        rollout: Any,
        *,
        template: str = "search",
        reward: Any = None,
        reads_thoughts: bool = False,
        reader: str = "",
        **options: Any,
    ) -> Environment:
        """Search alone, over a retriever.

        Args:
            retriever: None where nothing is searched.
            rollout: settings of rollouts.
            template: of prompts, see `load_template`.
            reward: settings of rewards; by default exact match.
            reads_thoughts: whether each thought is a search, instead of a request of its own.
            reader: template in which the policy reads what a search found; "": it is shown that.
            options: of calls, see `environment.settings.CALLS`.
        """
        tool = _search_tool(retriever, rollout, reads_thoughts)
        return cls(
            tools=(tool,),
            search=tool,
            template=load_template(template),
            reward=Reward(reward or REWARD.defaults(), rollout.max_context_tokens),
            options={SEARCH: CallOptions.of({SEARCH: vars(CallOptions(**options))}, SEARCH)},
            reader=load_template(reader, reader=True) if reader else None,
        )


def _search_tool(retriever: Retriever | None, rollout: Any, reads_thoughts: bool) -> SearchTool:
    return SearchTool(
        retriever,
        rollout.passages,
        parallel_queries=rollout.parallel_queries,
        reads_thoughts=reads_thoughts,
    )


def make_environment(
    config: Any,
    retriever: Retriever | None,
    template: PromptTemplate,
    *,
    rewarded: bool = True,
    reads_thoughts: bool = False,
    reader: PromptTemplate | None = None,
) -> Environment:
    """The environment of a run.

    Args:
        config: of the run: its sections environment, rollout and reward.
        retriever: None where nothing is searched.
        template: of prompts.
        rewarded: whether episodes earn what the settings say, or exact match.
        reads_thoughts: whether each thought is a search, and no other tool is called.
        reader: see `Environment`.

    Raises:
        ValueError: tools or terms that cannot be made, tags that clash, options out of range.
    """
    rollout = config.rollout
    search = _search_tool(retriever, rollout, reads_thoughts)
    tools: tuple[Tool, ...] = (search,)
    if not reads_thoughts:
        tools = make_tools(tuple(config.environment.tools), config, {SEARCH: lambda: search})
    options = config.environment.options
    tags = {SEARCH, *(tool.tag for tool in tools)}
    # Where thoughts are searches, the other tools of the run are not made.
    if not reads_thoughts and (unused := sorted(set(options) - tags)):
        raise ValueError(
            f"environment.options.{unused[0]}: no tool of environment.tools has the tag "
            f"{unused[0]!r}; the tags are {', '.join(sorted(tags))}."
        )
    return Environment(
        tools=tools,
        search=search,
        template=template,
        reward=Reward(config.reward if rewarded else REWARD.defaults(), rollout.max_context_tokens),
        options={tool.tag: CallOptions.of(options, tool.tag) for tool in (*tools, search)},
        reader=reader,
    )
