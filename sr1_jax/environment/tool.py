"""What a policy can call: the interface of a tool, and the tools of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from sr1_jax.import_path import blamed, is_import_path, load
from sr1_jax.protocol.tags import SEARCH, Tags, ToolTags


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a tool answers.

    Attributes:
        text: shown to the policy; untrusted: escaped line by line, and cut from the end where it
            exceeds the budget.
        record: kept on the trajectory (`Trajectory.calls`), for rewards, metrics and logs; it must
            pickle where a run has several processes.
    """

    text: str
    record: Any = None


@runtime_checkable
class Tool(Protocol):
    """Anything that answers requests between two segments of the policy.

    A tool may also have `failed(request) -> Observation`: what is shown of a request that no
    attempt could answer, where environment.options.<tag>.failure="empty" lets the run go on. By
    default that is an empty observation without a record. With the attribute `reads_thoughts` set
    to True its requests are the policy's thoughts, each as soon as it is closed; only one tool can.

    Attributes:
        tag: of a request, as in `<tag>request</tag>`.
        observation_tag: around what comes back.
    """

    tag: str
    observation_tag: str

    def call(self, requests: list[str]) -> list[Observation]:
        """Answers requests, one observation each, in their order.

        It is called in threads, several at once, each with up to environment.options.<tag>.batch
        requests. Whatever it raises counts as a failed attempt of all of them.

        Args:
            requests: the text between the tags, stripped; never empty, otherwise anything a policy
                may write.
        """
        ...


def check_tools(names: Sequence[str], config: Any) -> None:
    """Refuses tools that are not there. None is made, but a factory that has a function
    `check(config)` of its own is asked.

    Args:
        names: environment.tools.
        config: of the run.

    Raises:
        ValueError: names the setting and the tool.
    """
    for name in names:
        if is_import_path(name):
            factory = load(name, "environment.tools")
            check = getattr(factory, "check", None)
            if callable(check):
                with blamed(f"environment.tools={name!r}"):
                    check(config)
        elif name != SEARCH:
            raise ValueError(
                f"environment.tools has {name!r}; a tool is {SEARCH}, or module:factory."
            )


def tags_of(tools: list[Tool] | tuple[Tool, ...]) -> Tags:
    """The tags of some tools.

    Raises:
        ValueError: a tag is reserved, used twice, or no name.
    """
    return Tags(
        tuple(
            ToolTags(tool.tag, tool.observation_tag, getattr(tool, "reads_thoughts", False))
            for tool in tools
        )
    )


def make_tools(
    names: tuple[str, ...], config: Any, named: dict[str, Callable[[], Tool]]
) -> tuple[Tool, ...]:
    """The tools of environment.tools.

    Args:
        names: each of `named`, or an import path, module:factory.
        config: what factories are called with.
        named: our own, made when they are asked for.

    Raises:
        ValueError: an unknown name, a factory that cannot be imported, or something made by one
            that is no tool; names the setting and the tool.
    """
    tools = []
    for name in names:
        if name in named:
            tool = named[name]()
        elif is_import_path(name):
            factory = load(name, "environment.tools")
            with blamed(f"environment.tools={name!r}"):
                tool = factory(config)
        else:
            raise ValueError(
                f"environment.tools has {name!r}; a tool is one of {', '.join(named)}, or "
                "module:factory."
            )
        if not isinstance(tool, Tool) or not callable(tool.call):
            raise ValueError(
                f"environment.tools: {name!r} made {tool!r}, which is no tool: it needs tag, "
                "observation_tag and call(requests)."
            )
        tools.append(tool)
    tags_of(tools)  # refuses reserved and repeated ones
    return tuple(tools)
