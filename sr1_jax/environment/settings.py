"""Settings of the environment: which tools a policy has, and how each is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    one_of,
    or_none,
    whole_at_least,
)


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "be text"


def _command(value: Any) -> str | None:
    parts = [value] if isinstance(value, str) else value
    good = isinstance(parts, (tuple, list)) and all(isinstance(part, str) for part in parts)
    return None if good else "be a command, as text or as a tuple of its parts"


def _names(value: Any) -> str | None:
    parts = value.split(",") if isinstance(value, str) else value
    good = isinstance(parts, (tuple, list)) and all(isinstance(part, str) for part in parts)
    return None if good else "hold names of environment variables"


# How a tool is called: keys that environment.options.<tag> may hold for every tool, beside those of
# its factory. A run may have stopped because of them, so a resumed one may change them.
CALLS = Section(
    {
        "threads": Setting(4, "calls of the tool under way at a time", whole_at_least(1)),
        "batch": Setting(64, "requests that one call answers at most", whole_at_least(1)),
        "timeout_seconds": Setting(60.0, "until a call is given up", above(0)),
        "attempts": Setting(3, "calls before a failing tool is given up", whole_at_least(1)),
        "backoff_seconds": Setting(0.5, "before the second attempt; doubles", at_least(0)),
        "failure": Setting(
            "raise",
            "a tool that was given up ends the run (raise), or answers nothing and is counted "
            "(empty)",
            one_of("raise", "empty"),
        ),
        "max_calls": Setting(
            None,
            "calls of the tool in an episode; None: no limit of its own",
            or_none(whole_at_least(0)),
            int,
        ),
    },
    free_on_resume=True,
)

# Of a tool of a Model Context Protocol server: keys of environment.options.<tag> beside `CALLS`.
MCP = Section(
    {
        "command": Setting(
            "", "that starts the server, spoken to over standard input and output", _command
        ),
        "url": Setting("", "of a server that speaks streamable HTTP", _text),
        "folder": Setting("", "in which the command runs; empty: the current one", _text),
        "variables": Setting(
            (), "names of environment variables that the command gets", _names, type=object
        ),
        "key_variable": Setting(
            "", "name of the environment variable with the bearer token for the url", _text
        ),
        "tool": Setting("", "its name at the server; may be left out if there is one only", _text),
        "argument": Setting("", "that a request is put in; may be left out if it is clear", _text),
        "arguments": Section({}, open=True),
        "observation_tag": Setting("", "of what comes back; empty: <tag>_result", _text),
        "errors": Setting(
            "show",
            "an error of the tool is shown to the policy (show), or fails the call (fail)",
            one_of("show", "fail"),
        ),
        "max_characters": Setting(20_000, "of what comes back; more is cut", whole_at_least(1)),
        "connect_seconds": Setting(30.0, "until an attempt to connect is given up", above(0)),
        "connect_attempts": Setting(4, "at first, and when it was lost", whole_at_least(1)),
        "connect_backoff_seconds": Setting(
            0.5, "before the second attempt; doubles, and varies", at_least(0)
        ),
        "parallel": Setting(8, "calls under way at a time", whole_at_least(1)),
    }
)

ENVIRONMENT = Section(
    {
        "tools": Setting(
            ("search",),
            "tools of the policy: names, or module:factory, called with the config of the run",
        ),
        "options": Section(
            {"search": CALLS},
            open=True,
            others=CALLS,
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """How a tool is called; see `CALLS` for the meaning of each."""

    threads: int = CALLS.parts["threads"].default
    batch: int = CALLS.parts["batch"].default
    timeout_seconds: float = CALLS.parts["timeout_seconds"].default
    attempts: int = CALLS.parts["attempts"].default
    backoff_seconds: float = CALLS.parts["backoff_seconds"].default
    failure: str = CALLS.parts["failure"].default
    max_calls: int | None = CALLS.parts["max_calls"].default

    @classmethod
    def of(cls, options: Mapping[str, Any], tag: str) -> CallOptions:
        """Those of environment.options.<tag>, with the defaults for what it does not say.

        Raises:
            ValueError: a value out of range; names the key.
        """
        given = dict(options.get(tag, {}))
        known = {name: given[name] for name in CALLS.parts if name in given}
        filled = {name: setting.default for name, setting in CALLS.parts.items()} | known
        CALLS.check(filled, f"environment.options.{tag}.")
        return cls(**filled)


def check_config(config: Any) -> None:
    """Refuses options out of range, of any tool.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    tools = config.tools
    if not isinstance(tools, (tuple, list)) or not all(isinstance(t, str) and t for t in tools):
        raise ValueError(
            f"environment.tools must be a tuple of names or module:factory, not {tools!r}."
        )
    for tag in config.options:
        CallOptions.of(config.options, tag)
