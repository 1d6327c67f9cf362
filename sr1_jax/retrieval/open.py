"""The retriever that the settings ask for: one of ours by name, or anybody's by import path."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sr1_jax.import_path import blamed, is_import_path, load
from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.bm25 import bm25_options, open_bm25

# (retrieval section of the settings, corpus, index folder) -> retriever; see `open_retriever`.
Factory = Callable[[Mapping[str, Any], Path | None, Path | None], Retriever]


class Kind(NamedTuple):
    """A kind of retriever.

    Attributes:
        open: its factory.
        check: refuses options out of range before anything is opened.
        needs_corpus: whether it cannot be opened without a corpus or an index of one.
    """

    open: Factory
    check: Callable[[Mapping[str, Any]], Any] = lambda config: None
    needs_corpus: bool = False


KINDS = {
    "bm25": Kind(open_bm25, bm25_options, needs_corpus=True),
}


def open_retriever(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> Retriever:
    """Opens the retriever of `config.kind`, and builds what it needs on first use.

    A factory of the user's own, `module:function`, is called with the same three arguments. Its
    options are free keys of `config.options`.

    Args:
        config: the section `retrieval` of the settings.
        corpus: a passage file, see `read_corpus`; None where there is none.
        index: a folder to load an index from, and to build it in where it is not there or holds
            that of another corpus or of other options; None where there is none.

    Raises:
        ValueError: there is no such kind; a factory returned what is no retriever; or the
            retriever's own complaint about options, corpus or index.
        FileNotFoundError: the corpus, or an index without a corpus to build it of, is not there.
    """
    kind = _find(config["kind"])
    own = is_import_path(config["kind"])
    with blamed(f"retrieval.kind={config['kind']!r}") if own else contextlib.nullcontext():
        retriever = kind.open(config, corpus, index)
    if not isinstance(retriever, Retriever):
        raise ValueError(
            f"retrieval.kind={config['kind']!r} returned a {type(retriever).__name__}, which has "
            "no method search(queries, k)."
        )
    return retriever


def check_retrieval(config: Mapping[str, Any]) -> None:
    """Refuses a kind that is not there, or options out of range; opens nothing.

    Args:
        config: the section `retrieval` of the settings.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    kind = _find(config["kind"])
    try:
        kind.check(config)
    except ValueError as error:
        raise ValueError(f"retrieval: {error}") from error


def needs_corpus(config: Mapping[str, Any]) -> bool:
    """Whether the kind needs a corpus or an index; one of the user's own says so itself."""
    return _find(config["kind"]).needs_corpus


def _find(name: str) -> Kind:
    if is_import_path(name):
        return Kind(load(name, "retrieval.kind"))
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"retrieval.kind={name!r}: there is no such retriever; choose one of "
            f"{', '.join(KINDS)}, or give module:factory.{hint}"
        )
    return KINDS[name]


def fingerprint_of(retriever: Retriever) -> str:
    """What the retriever says it was built from, or "" where it does not say."""
    return str(getattr(retriever, "fingerprint", ""))
