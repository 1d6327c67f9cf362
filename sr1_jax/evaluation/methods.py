"""How a question is answered: by which prompt, and with tools or without.

The methods are the baselines of the paper (arXiv 2503.09516, section 4.2) that need no training of
their own, and search itself; docs/evaluation.md says how each differs from its source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections
from jax.sharding import Mesh

from sr1_jax.environment import Environment, make_environment
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import local_path
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
        prompts_of: the method whose prompts it has; "": its own.
        reads_thoughts: whether each thought is a search, and there is no other tool.
        reads_passages: whether the policy reads what a search found in a prompt of its own.
        untrained: why it cannot be trained with; "": it can.
    """

    template: str
    calls_tools: bool
    meaning: str
    prompts_of: str = ""
    reads_thoughts: bool = False
    reads_passages: bool = False
    untrained: str = ""


# A new method is one line here, and a template; what a line cannot say, the environment must do.
METHODS = {
    "search": Method("search", True, "the policy calls tools"),
    "direct": Method("direct", False, "it answers at once"),
    "cot": Method("cot", False, "it thinks, then answers"),
    "rag": Method("rag", False, "passages for the question are in the prompt"),
    "ircot": Method(
        "ircot", True, "passages are in the prompt, and each thought is a search",
        reads_thoughts=True,
    ),
    "search_o1": Method(
        "search_o1", True, "the policy searches, and reads passages in a prompt of their own",
        reads_passages=True,
        untrained="what the policy writes when it reads passages is in no trajectory",
    ),
    "rejection": Method(
        "search", True, "as search; correct episodes are kept as examples", prompts_of="search",
        untrained="it samples examples for supervised training: see python -m sr1_jax.evaluate "
        "--method=rejection",
    ),
}  # fmt: skip

# The settings of prompts, protocol.<method>_template, and that of the prompt that reads.
READER = "reader_template"
TEMPLATES = {
    f"{name}_template": Setting(method.template, f"prompt where {method.meaning}")
    for name, method in METHODS.items()
    if not method.prompts_of
} | {READER: Setting("reader", "prompt of search_o1 with {query} and {information} to read")}


def check_method(method: str) -> None:
    """Refuses an unknown method.

    Raises:
        ValueError: naming those there are.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")


def check_trains(method: str) -> None:
    """Refuses a method that cannot be trained with.

    Raises:
        ValueError: saying why.
    """
    check_method(method)
    if METHODS[method].untrained:
        trained = ", ".join(name for name, row in METHODS.items() if not row.untrained)
        raise ValueError(
            f"method={method!r} cannot be trained with: {METHODS[method].untrained}. Set one of "
            f"{trained}."
        )


def prompt_settings(method: str) -> tuple[str, ...]:
    """Settings below protocol that the prompts of a method depend on."""
    row = METHODS[method]
    own = row.prompts_of or method
    return (
        f"{own}_template",
        *(("template_path",) if own == "search" else ()),
        *((READER,) if row.reads_passages else ()),
        "chat",
    )


def templates(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The prompt template of each method: the name of a shipped one, or a file.

    Raises:
        ValueError: protocol.template_path is not a file.
    """
    protocol = config.protocol
    names = {
        method: protocol[f"{row.prompts_of or method}_template"] for method, row in METHODS.items()
    }
    if protocol.template_path:
        file = local_path(protocol.template_path, "protocol.template_path")
        if not file.is_file():
            raise ValueError(f"protocol.template_path: {protocol.template_path} is not a file.")
        # Absolute, so that a file is never mistaken for a shipped template of its name.
        path = str(file.resolve())
        names |= {
            method: path for method, row in METHODS.items() if "search" in (method, row.prompts_of)
        }
    return names


def check_templates(config: ml_collections.ConfigDict, method: str | None = None) -> None:
    """Refuses a prompt that is not there or asks nothing.

    Args:
        config: of a run.
        method: whose prompts; None: of all methods.

    Raises:
        ValueError: naming the setting.
    """
    for key, template, reader in _templates_by_key(config, method):
        try:
            load_template(template, reader=reader)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def check_chat(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> None:
    """Refuses a chat template of the model that does not work around one of the prompts.

    Raises:
        ValueError: see `template_for`.
    """
    for _, template, reader in _templates_by_key(config, None):
        template_for(template, tokenizer, config.protocol.chat, reader=reader)


def _templates_by_key(
    config: ml_collections.ConfigDict, method: str | None
) -> Iterator[tuple[str, str, bool]]:
    """(setting, template, whether passages are read in it) of a method or of all."""
    for name, template in templates(config).items():
        row = METHODS[name]
        if name == method or (method is None and not row.prompts_of):
            own = row.prompts_of or name
            by_path = own == "search" and config.protocol.template_path
            key = "template_path" if by_path else f"{own}_template"
            yield f"protocol.{key}", template, False
    if method is None or METHODS[method].reads_passages:
        yield f"protocol.{READER}", config.protocol[READER], True


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
    searches = METHODS[method].reads_thoughts or SEARCH in config.environment.tools
    return wants_information or bool(calls and searches)


def prompt_fingerprint(config: ml_collections.ConfigDict, method: str) -> str:
    """A hash of what the prompts of a method say, that of its reader too, wherever their templates
    lie."""
    said = (load_template(templates(config)[method]).parts, config.protocol.chat)
    if METHODS[method].reads_passages:
        said += (load_template(config.protocol[READER], reader=True).parts,)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def method_environment(
    config: ml_collections.ConfigDict,
    retriever: Retriever | None,
    method: str,
    tokenizer: Tokenizer | None,
    *,
    rewarded: bool = True,
) -> Environment:
    """What the policy acts on when it answers by a method.

    Args:
        config: of the run.
        retriever: None where nothing is searched.
        method: one of `METHODS`.
        tokenizer: of the policy; None where no prompt is rendered, as in a plan.
        rewarded: see `make_environment`.

    Raises:
        ValueError: as `make_environment` and `prompt_template`.
    """
    row, reader = METHODS[method], None
    if tokenizer is None:
        template = load_template(templates(config)[method])
    else:
        template = prompt_template(config, method, tokenizer)
        if row.reads_passages:
            chat = config.protocol.chat
            reader = template_for(config.protocol[READER], tokenizer, chat, reader=True)
    return make_environment(
        config,
        retriever,
        template,
        rewarded=rewarded,
        reads_thoughts=row.reads_thoughts,
        reader=reader,
    )


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
    keeps_caches: bool = False,
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
        keeps_caches: see `Engine`.

    Raises:
        ValueError: an unknown method, or settings that cannot work.
    """
    rollout = rollout_config(config, method, greedy=greedy)
    environment = method_environment(config, retriever, method, tokenizer, rewarded=trains)
    return SplitEngine(
        model, tokenizer, retriever, rollout, environment=environment, mesh=mesh,
        keeps_caches=keeps_caches,
    )  # fmt: skip
