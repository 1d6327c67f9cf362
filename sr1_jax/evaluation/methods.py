"""How a question is answered: by which prompt, and with tools or without."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import ml_collections
from jax.sharding import Mesh

from sr1_jax.environment import make_environment
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.prompts import PromptTemplate, load_template, template_for
from sr1_jax.protocol.tags import SEARCH
from sr1_jax.retrieval.base import Retriever
from sr1_jax.rollout import SplitEngine
from sr1_jax.settings import Setting


class Method(NamedTuple):
    """A way to answer questions.

    Attributes:
        template: of its prompts by default; one with a place for passages has them searched.
        calls_tools: whether the policy may call tools.
        meaning: of the prompt, for `--help`.
    """

    template: str
    calls_tools: bool
    meaning: str


# A new method is one line here, and a template.
METHODS = {
    "search": Method("search", True, "the policy calls tools"),
    "direct": Method("direct", False, "it answers at once"),
    "rag": Method("rag", False, "passages for the question are in the prompt"),
}

# The settings of prompts, protocol.<method>_template.
TEMPLATES = {
    f"{name}_template": Setting(method.template, f"prompt where {method.meaning}")
    for name, method in METHODS.items()
}


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
    """The rollout settings of a method.

    Raises:
        ValueError: an unknown method.
    """
    check_method(method)
    rollout = config.rollout.copy_and_resolve_references().unlock()
    if not METHODS[method].calls_tools:
        rollout.max_searches = 0
    if greedy:
        rollout.temperature = 0.0
    return rollout.lock()


def prompt_template(
    config: ml_collections.ConfigDict, method: str, tokenizer: Tokenizer
) -> PromptTemplate:
    """The prompt of a method, with protocol.chat in the model's chat template.

    Raises:
        ValueError: there is no such template, or the model's chat template does not work.
    """
    return template_for(templates(config)[method], tokenizer, config.protocol.chat)


def needs_retriever(config: ml_collections.ConfigDict, method: str) -> bool:
    """Whether a method searches: for its prompts, or with the search tool."""
    calls = rollout_config(config, method).max_searches
    wants_information = load_template(templates(config)[method]).wants_information
    return wants_information or bool(calls and SEARCH in config.environment.tools)


def prompt_fingerprint(config: ml_collections.ConfigDict, method: str) -> str:
    """A hash of what the prompts of a method say, wherever their template lies."""
    parts = load_template(templates(config)[method]).parts
    return hashlib.sha256(repr((parts, config.protocol.chat)).encode()).hexdigest()


def make_engine(
    model: Decoder,
    tokenizer: Tokenizer,
    retriever: Retriever | None,
    config: ml_collections.ConfigDict,
    method: str,
    *,
    greedy: bool = False,
    trains: bool = False,
    mesh: Mesh | None = None,
) -> SplitEngine:
    """The engine that answers questions by a method.

    Args:
        model: the policy.
        tokenizer: of the policy.
        retriever: may be None for a method that searches nothing.
        config: of the run.
        method: one of `METHODS`.
        greedy: instead of sampling.
        trains: whether trajectories earn what reward.terms say; in evaluations, where a judge
            would be asked for nothing, they earn exact match.
        mesh: the device mesh; by default one of the first device alone.

    Raises:
        ValueError: an unknown method, or settings that cannot work.
    """
    rollout = rollout_config(config, method, greedy=greedy)
    template = prompt_template(config, method, tokenizer)
    environment = make_environment(config, retriever, template, rewarded=trains)
    return SplitEngine(model, tokenizer, retriever, rollout, environment=environment, mesh=mesh)
