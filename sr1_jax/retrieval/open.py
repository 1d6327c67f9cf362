"""The retriever that the settings ask for: one of ours by name, or anybody's by import path."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sr1_jax.import_path import is_import_path, load
from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.bm25 import open_bm25

# (retrieval section of the settings, corpus, index folder) -> retriever; see `open_retriever`.
Factory = Callable[[Mapping[str, Any], Path | None, Path | None], Retriever]

KINDS: dict[str, Factory] = {
    "bm25": open_bm25,
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
        ValueError: there is no such kind; or the retriever's own complaint about options, corpus
            or index.
        FileNotFoundError: the corpus, or an index without a corpus to build it of, is not there.
        TypeError: what a factory returned is no retriever.
    """
    factory = find_factory(config["kind"])
    retriever = factory(config, corpus, index)
    if not isinstance(retriever, Retriever):
        raise TypeError(
            f"retrieval.kind={config['kind']!r} returned a {type(retriever).__name__}, which has "
            "no method search(queries, k)."
        )
    return retriever


def find_factory(kind: str) -> Factory:
    """The factory of a kind, nothing opened yet.

    Raises:
        ValueError: there is no such kind, or nothing at the import path.
    """
    if is_import_path(kind):
        return load(kind, "retrieval.kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"retrieval.kind={kind!r}: there is no such retriever; choose one of "
            f"{', '.join(KINDS)}, or give module:factory.{hint}"
        )
    return KINDS[kind]


def fingerprint_of(retriever: Retriever) -> str:
    """What the retriever says it was built from, or "" where it does not say."""
    return str(getattr(retriever, "fingerprint", ""))
