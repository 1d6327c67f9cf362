"""The tags of the protocol: how blocks are written, and what follows from the tools there are.

A response is a row of blocks, `<think>…</think>`, a request to a tool in the tool's tag, an
observation in the tool's observation tag, and in the end `<answer>…</answer>`. One tool may take
the thoughts themselves for its requests. Which tags there are, where the policy hands over, and
which block may follow which all derive from the tools configured; `SEARCH_TAGS`, search alone, is
what every function takes by default.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import NamedTuple

THINK = "think"
SEARCH = "search"
INFORMATION = "information"
ANSWER = "answer"

# Blocks that are there whatever the tools.
RESERVED = (THINK, ANSWER)
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def open_tag(name: str) -> str:
    """The opening tag of a block, e.g. `<search>`."""
    return f"<{name}>"


def close_tag(name: str) -> str:
    """The closing tag of a block, e.g. `</search>`."""
    return f"</{name}>"


class ToolTags(NamedTuple):
    """The two tags of a tool: of a request to it, and of what comes back.

    Attributes:
        tag: of the tool; also of its requests, unless it reads thoughts.
        observation_tag: around what comes back.
        reads_thoughts: whether each closed thought is a request; there is no other.
    """

    tag: str
    observation_tag: str
    reads_thoughts: bool = False

    @property
    def request_tag(self) -> str:
        """Of the block that a request is written in."""
        return THINK if self.reads_thoughts else self.tag


@dataclasses.dataclass(frozen=True)
class Tags:
    """The tags of a run.

    Attributes:
        tools: of each tool; may be none.

    Raises:
        ValueError: a tag is reserved, given twice, or not a lower-case name, or two tools read
            thoughts.
    """

    tools: tuple[ToolTags, ...]

    def __post_init__(self):
        seen = set(RESERVED)
        for name in (name for tool in self.tools for name in tool[:2]):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"Tag {name!r} of a tool: a tag is a lower-case name of letters, digits, "
                    "_ and -, starting with a letter."
                )
            if name in RESERVED:
                raise ValueError(f"Tag {name!r} of a tool is reserved; choose another.")
            if name in seen:
                raise ValueError(
                    f"Tag {name!r} is used twice; every tool needs a tag and an observation tag of "
                    "its own."
                )
            seen.add(name)
        readers = [tool.tag for tool in self.tools if tool.reads_thoughts]
        if len(readers) > 1:
            raise ValueError(f"Only one tool can read thoughts, not {' and '.join(readers)}.")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of all blocks."""
        names = (
            THINK,
            *(n for t in self.tools for n in (t.request_tag, t.observation_tag)),
            ANSWER,
        )
        return tuple(dict.fromkeys(names))

    @functools.cached_property
    def observation_names(self) -> tuple[str, ...]:
        """Of the blocks that the environment writes."""
        return tuple(tool.observation_tag for tool in self.tools)

    @functools.cached_property
    def stop_tags(self) -> tuple[str, ...]:
        """The policy hands over to the environment right after one of these."""
        return (*(close_tag(tool.request_tag) for tool in self.tools), close_tag(ANSWER))

    @functools.cached_property
    def followers(self) -> dict[str | None, tuple[str, ...]]:
        """Which blocks may follow a block; None stands for the start of the response."""
        own = tuple(tool for tool in self.tools if not tool.reads_thoughts)
        actions = (*(tool.tag for tool in own), ANSWER)
        found = {None: (THINK,), THINK: actions, ANSWER: ()}
        for tool in own:
            found |= {tool.tag: (tool.observation_tag,), tool.observation_tag: (THINK,)}
        for tool in self.tools:
            if tool.reads_thoughts:
                # The last thought asks nothing, and after what one brought none has to come.
                found[THINK] = (tool.observation_tag, *actions)
                found[tool.observation_tag] = (THINK, *actions)
        return found

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        """Matches one tag, exactly spelled: groups are the slash of a closing one and the name."""
        # No repetition in the pattern: nothing to backtrack over.
        return re.compile(f"<(/?)({'|'.join(map(re.escape, self.names))})>")

    @functools.cached_property
    def lookalike(self) -> re.Pattern:
        """Matches the `<` of whatever a reader might take for one of the tags."""
        names = "|".join(map(re.escape, self.names))
        return re.compile(rf"<(?=\s*/?\s*(?:{names})\s*>)", re.IGNORECASE)

    def of(self, tag: str) -> ToolTags:
        """The tags of the tool whose requests have this one.

        Raises:
            KeyError: no tool has it.
        """
        for tool in self.tools:
            if tool.tag == tag:
                return tool
        raise KeyError(tag)


SEARCH_TAGS = Tags((ToolTags(SEARCH, INFORMATION),))


def correction(tags: Tags = SEARCH_TAGS) -> str:
    """What is shown after a segment that neither called a tool nor answered.

    There are no tags in it: the whole response stays parseable by eye and by `extract_answer`.
    """
    requests = [tool.request_tag for tool in tags.tools]
    if not requests:
        return "\nThat was no answer. Put the final answer between answer tags.\n"
    if requests == [SEARCH]:
        action, content = "a search", "a query between search tags"
    elif requests == [THINK]:
        action, content = "a thought", "one thought between think tags"
    else:
        listed = " or ".join(requests)
        action, content = "a request", f"a request between {listed} tags"
    return (
        f"\nThat was neither {action} nor an answer. Put {content}, "
        "or the final answer between answer tags.\n"
    )


def refusal(tag: str) -> str:
    """What is shown after a request to a tool whose calls are used up."""
    return f"\nThere are no more calls of {tag}. Go on without, and answer between answer tags.\n"
