"""How a question is answered: by which prompt, and with tools or without."""

from __future__ import annotations

from pathlib import Path

import ml_collections

METHODS = ("search", "direct", "rag")


def check_method(method: str) -> None:
    """Refuses an unknown method.

    Raises:
        ValueError: naming those there are.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")


def templates(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The prompt template of each method: the name of a shipped one, or a file.

    Raises:
        ValueError: protocol.template_path is not a file.
    """
    protocol = config.protocol
    names = {method: protocol[f"{method}_template"] for method in METHODS}
    if protocol.template_path:
        if not Path(protocol.template_path).is_file():
            raise ValueError(f"protocol.template_path: {protocol.template_path} is not a file.")
        # Absolute, so that a file is never mistaken for a shipped template of its name.
        names["search"] = str(Path(protocol.template_path).resolve())
    return names


def rollout_config(
    config: ml_collections.ConfigDict, method: str, *, greedy: bool = False
) -> ml_collections.ConfigDict:
    """The rollout settings of a method: no tool is called but by `search`.

    Raises:
        ValueError: an unknown method.
    """
    check_method(method)
    rollout = config.rollout.copy_and_resolve_references().unlock()
    if method != "search":
        rollout.max_searches = 0
    if greedy:
        rollout.temperature = 0.0
    return rollout.lock()
