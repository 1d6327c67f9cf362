"""Tools of a Model Context Protocol server as tools of a policy.

    --config.environment.tools='("search", "sr1_jax.environment.mcp:lookup")' \\
    --config.environment.options.lookup.command="python my_server.py" \\
    --config.environment.options.lookup.tool=search_articles

The name behind the colon is the tag, and its options are environment.options.<tag>; `:tool` stands
for the one tag whose options name a command or a url. Needs `pip install 'sr1_jax[mcp]'`.
"""

from __future__ import annotations

import collections
import json
import shlex
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

try:
    import jsonschema
    import mcp
    from mcp_types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, Tool
except ModuleNotFoundError as error:
    raise ValueError(f"needs the package {error.name}: pip install 'sr1_jax[mcp]'") from error

from sr1_jax.environment.mcp_link import Server
from sr1_jax.environment.mcp_session import Session, session_of
from sr1_jax.environment.settings import CALLS, MCP, CallOptions
from sr1_jax.environment.tool import Observation
from sr1_jax.http_exchange import address_problem
from sr1_jax.settings import did_you_mean


class McpRecord(NamedTuple):
    """What came of a call.

    Attributes:
        tool: name of it at the server.
        error: whether it failed, by its own account or the server's, or did not answer.
        structured: its structured result, as JSON; None where there is none.
        cut: characters that were left out of the text, because it was too long.
    """

    tool: str
    error: bool
    structured: Any = None
    cut: int = 0


class McpTool:
    """A tool of a server.

    Args:
        tag: of requests.
        session: with the server.
        name: of the tool there.
        argument: that a request is put in.
        arguments: others, the same for all requests.
        observation_tag: of what comes back.
        timeout_seconds: for all requests of a call.
        errors: what an error of the tool comes to: "show": the policy reads it; "fail": the call
            has failed.
        max_characters: of a text; the rest is cut, which is counted.
    """

    def __init__(
        self,
        tag: str,
        session: Session,
        name: str,
        argument: str,
        *,
        arguments: Mapping[str, Any] | None = None,
        observation_tag: str = "",
        timeout_seconds: float = 60.0,
        errors: str = "show",
        max_characters: int = 20_000,
    ):
        self.tag = tag
        self.observation_tag = observation_tag or f"{tag}_result"
        self._session, self._name, self._argument = session, name, argument
        self._arguments = dict(arguments or {})
        self._timeout_seconds, self._errors = timeout_seconds, errors
        self._max_characters = max_characters
        self._counts: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, float]:
        """Totals: errors that tools answered with, texts that were cut, and connections that were
        made to the server by all who share the session."""
        with self._lock:
            counts = {"errors": 0, "cut": 0} | self._counts
        counts["connections"] = self._session.connections
        return {key: float(count) for key, count in counts.items()}

    def call(self, requests: list[str]) -> list[Observation]:
        """See `Tool.call`; the record of each observation is an `McpRecord`.

        Raises:
            ConnectionError, TimeoutError: see `Session.call`.
            RuntimeError: the tool answered with an error, and that is a failure.
        """
        arguments = [self._arguments | {self._argument: _clean(request)} for request in requests]
        results = self._session.call(self._name, arguments, self._timeout_seconds)
        return [self._observation(result) for result in results]

    def failed(self, request: str) -> Observation:
        """What a request comes to that no attempt could answer."""
        return Observation("The tool did not answer.", McpRecord(self._name, True))

    def _observation(self, result: CallToolResult | mcp.MCPError) -> Observation:
        refused = isinstance(result, mcp.MCPError)
        text = result.message if refused else text_of(result)
        error = refused or bool(result.is_error)
        cut = max(0, len(text) - self._max_characters)
        with self._lock:
            self._counts["errors"] += error
            self._counts["cut"] += bool(cut)
        text = text[: self._max_characters]
        if error and self._errors == "fail":
            raise RuntimeError(f"the tool {self._name} answered with an error: {text[:200]!r}")
        structured = None if refused else result.structured_content
        shown = f"The tool failed: {text}" if error else text
        return Observation(shown, McpRecord(self._name, error, structured, cut))


def text_of(result: CallToolResult) -> str:
    """What a result says: its texts, and a line for each part that is none; without any part its
    structured result, as JSON."""
    parts = [_text_of_part(part) for part in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _text_of_part(part: Any) -> str:
    if isinstance(part, TextContent):
        return part.text
    if isinstance(part, ResourceLink):
        return " ".join(filter(None, (part.title or part.name, str(part.uri), part.description)))
    if isinstance(part, EmbeddedResource):
        text = getattr(part.resource, "text", None)
        return text if text is not None else f"[{part.resource.uri}, which is no text]"
    return f"[{part.type}, {getattr(part, 'mime_type', 'of some kind')}]"


def _clean(request: str) -> str:
    # Half a surrogate pair, which sampled bytes can give, has no UTF-8 and would end the session.
    return request.encode("utf-8", "replace").decode("utf-8")


class Factory:
    """Makes the tool of a tag.

    Args:
        tag: None: the one whose options name a server.
    """

    def __init__(self, tag: str | None = None):
        self._tag = tag

    def __call__(self, config: Any) -> McpTool:
        """The tool; its server is started, or connected to, if it was not before.

        Raises:
            ValueError, ConnectionError: see `check`.
        """
        tag, options = self._options(config)
        session = session_of(_server(tag, options))
        tool = _find(tag, options, session)
        return McpTool(
            tag,
            session,
            tool.name,
            _argument(tag, options, tool),
            arguments=options["arguments"],
            observation_tag=options["observation_tag"],
            timeout_seconds=CallOptions.of(config.environment.options, tag).timeout_seconds,
            errors=options["errors"],
            max_characters=options["max_characters"],
        )

    def check(self, config: Any) -> None:
        """Connects, and refuses what cannot work: before a run does anything expensive.

        Raises:
            ValueError: options that are unknown or out of range, a command that is not there, a
                variable that is not set, a tool or an argument that the server does not have.
            ConnectionError: the server cannot be reached.
        """
        self(config)

    def _options(self, config: Any) -> tuple[str, dict[str, Any]]:
        every = config.environment.options
        tag = self._tag
        if tag is None:
            tags = [name for name in every if _names_server(every[name])]
            if len(tags) != 1:
                found = ", ".join(tags) or "none does"
                raise ValueError(
                    "which tag is meant? One section of environment.options has to name a command "
                    f"or a url ({found}); write sr1_jax.environment.mcp:TAG for each of several."
                )
            (tag,) = tags
        given = ml_collections.ConfigDict(every.get(tag, {})).to_dict()
        known = (*MCP.parts, *CALLS.parts)
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"environment.options.{tag}.{name} is no option of a tool.{hint}")
        defaults = {name: getattr(part, "default", {}) for name, part in MCP.parts.items()}
        options = defaults | {name: given[name] for name in MCP.parts if name in given}
        MCP.check(options, f"environment.options.{tag}.")
        # As JSON has it, which knows no tuples.
        options["arguments"] = json.loads(json.dumps(options["arguments"]))
        return tag, options


def _names_server(options: Any) -> bool:
    return "command" in options or "url" in options


def _server(tag: str, options: Mapping[str, Any]) -> Server:
    """Where the options say the server is; checked."""
    where = f"environment.options.{tag}"
    command, url = options["command"], options["url"]
    if bool(command) == bool(url):
        raise ValueError(f"{where} has to have either command or url, not both, nor neither.")
    if url and (problem := address_problem(url)):
        raise ValueError(f"{where}.url must {problem}.")
    for other, keys in (("url", ("folder", "variables")), ("command", ("key_variable",))):
        for key in keys:
            if options[other] and options[key]:
                raise ValueError(f"{where}.{key} means nothing beside {other}; leave it out.")
    try:
        parts = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise ValueError(f"{where}.command={command!r}: {error}.") from error
    variables = options["variables"]
    if isinstance(variables, str):
        variables = filter(None, map(str.strip, variables.split(",")))
    server = Server(
        command=tuple(parts),
        url=url,
        folder=options["folder"],
        variables=tuple(variables),
        key_variable=options["key_variable"],
        connect_seconds=options["connect_seconds"],
        connect_attempts=options["connect_attempts"],
        backoff_seconds=options["connect_backoff_seconds"],
        parallel=options["parallel"],
    )
    try:
        server.check()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return server


def _find(tag: str, options: Mapping[str, Any], session: Session) -> Tool:
    """The tool that the options name, or the only one there is."""
    tools = {tool.name: tool for tool in session.tools()}
    name = options["tool"]
    if not name and len(tools) == 1:
        return next(iter(tools.values()))
    if name not in tools:
        hint = did_you_mean(name, tools)
        raise ValueError(
            f"environment.options.{tag}.tool={name!r}: the server has "
            f"{', '.join(sorted(tools)) or 'no tools'}.{hint}"
        )
    return tools[name]


def _argument(tag: str, options: Mapping[str, Any], tool: Tool) -> str:
    """The argument that requests are put in; refuses calls that the tool's schema does not allow.

    By default it is the only required one that is not given otherwise, or the only one.
    """
    where, fixed = f"environment.options.{tag}", dict(options["arguments"])
    schema = tool.input_schema
    names = [name for name in schema.get("properties", {}) if name not in fixed]
    required = [name for name in schema.get("required", ()) if name not in fixed]
    name = options["argument"]
    if not name:
        (name, *others) = required or names or [""]
        if not name or others:
            raise ValueError(
                f"{where}.argument is not set: say which argument of {tool.name} a request is; it "
                f"has {', '.join(names) or 'none'}."
            )
    if name in fixed:
        raise ValueError(f"{where}.argument={name!r} is given in {where}.arguments too.")
    if names and name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(
            f"{where}.argument={name!r}: {tool.name} has no such argument, but "
            f"{', '.join(names)}.{hint}"
        )
    _check_schema(where, schema, tool.name, name, fixed)
    return name


def _check_schema(
    where: str, schema: Mapping[str, Any], tool: str, argument: str, fixed: Mapping[str, Any]
) -> None:
    """Tries the schema on a request; what it says of the text itself is let pass."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    for error in validator.iter_errors(fixed | {argument: "text"}):
        if list(error.absolute_path) == [argument]:
            if error.validator != "type":
                continue
            message = f"a request is text, but {argument} is {error.schema.get('type')!r}"
        else:
            message = error.message
        raise ValueError(
            f"{where}: {tool} cannot be called like this: {message}. See {where}.argument and "
            f"{where}.arguments."
        )


tool = Factory()


def __getattr__(name: str) -> Factory:
    """The factory of a tag: `sr1_jax.environment.mcp:TAG`."""
    if name.startswith("_"):
        raise AttributeError(name)
    return Factory(name)
