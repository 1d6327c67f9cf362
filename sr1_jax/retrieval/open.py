"""The retriever that the settings ask for: one of ours by name, or anybody's by import path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.import_path import blamed, is_import_path, load
from sr1_jax.paths import local_path
from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.bm25 import BM25Retriever, bm25_options, open_bm25
from sr1_jax.retrieval.cache import with_cache
from sr1_jax.retrieval.http_retriever import check_http, open_http
from sr1_jax.retrieval.hybrid import open_hybrid
from sr1_jax.retrieval.incomplete import Incomplete
from sr1_jax.retrieval.index_folder import DENSE_FORMAT, format_of
from sr1_jax.retrieval.noise import check_noise, with_noise
from sr1_jax.retrieval.stand_ins import Delayed, open_empty
from sr1_jax.retrieval.web_retriever import check_web, open_web
from sr1_jax.retrieval.web_wire import MOST_RESULTS
from sr1_jax.settings import did_you_mean

# (retrieval section of the settings, corpus, index folder) -> retriever; see `open_retriever`.
Factory = Callable[[Mapping[str, Any], Path | None, Path | None], Retriever]


class Kind(NamedTuple):
    """A kind of retriever.

    Attributes:
        open: its factory.
        check: refuses options out of range before anything is opened.
        needs_corpus: whether it cannot be opened without a corpus or an index of one.
        elsewhere: whether what it searches is not what it is given, but lies on servers.
        most_passages: that a query can find; None: as many as there are.
    """

    open: Factory
    check: Callable[[Mapping[str, Any]], Any] = lambda config: None
    needs_corpus: bool = False
    elsewhere: bool = False
    most_passages: int | None = None


def _open_dense(config, corpus, index):
    # Here, not above: searches by words need no JAX.
    from sr1_jax.retrieval.dense import open_dense

    return open_dense(config, corpus, index)


def _check_dense(config: Mapping[str, Any]) -> None:
    from sr1_jax.retrieval.dense import check_dense

    check_dense(config)


def _open_hybrid(config, corpus, index):
    return open_hybrid(config, corpus, index, open_kind=lambda kind: _find(kind).open)


def _check_hybrid(config: Mapping[str, Any]) -> None:
    for kind in config["hybrid"]["kinds"]:
        _find(kind).check(config)


KINDS = {
    "bm25": Kind(open_bm25, bm25_options, needs_corpus=True),
    "dense": Kind(_open_dense, _check_dense, needs_corpus=True),
    "hybrid": Kind(_open_hybrid, _check_hybrid, needs_corpus=True),
    "empty": Kind(open_empty),
    "http": Kind(open_http, check_http, elsewhere=True),
    "web": Kind(open_web, check_web, elsewhere=True, most_passages=MOST_RESULTS),
}

# What does not decide how an index is built, or what is in it.
_AROUND = ("http", "web", "rerank", "noise", "cache", "missing", "delay_seconds")
_SEARCH_ONLY = ("search", "query_prefix")  # of retrieval.dense


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
    scorer = _scorer_of(config)  # first: its faults are told before an index is built
    with blamed(f"retrieval.kind={config['kind']!r}") if own else contextlib.nullcontext():
        retriever = kind.open(config, corpus, index)
    if not isinstance(retriever, Retriever):
        raise ValueError(
            f"retrieval.kind={config['kind']!r} returned a {type(retriever).__name__}, which has "
            "no method search(queries, k)."
        )
    return _wrapped(retriever, config, corpus, scorer)


def _scorer_of(config: Mapping[str, Any]) -> Any:
    """The reranker's cross-encoder; None without one."""
    if "rerank" not in config or not config["rerank"]["model"]:
        return None
    # Here, not above: searches by words need no JAX.
    from sr1_jax.retrieval.rerank import open_scorer

    return open_scorer(config["rerank"])


def open_as_built(index: Path) -> Retriever:
    """The retriever over an index, of the kind and with the options that it was built with.

    Raises:
        FileNotFoundError, ValueError: there is no index, or it cannot be opened.
    """
    if format_of(index) == DENSE_FORMAT:
        from sr1_jax.retrieval import dense

        return dense.open_as_built(index)
    return BM25Retriever.load(index)


def wrapped(
    retriever: Retriever, config: Mapping[str, Any], corpus: Path | None = None
) -> Retriever:
    """A retriever with the gaps, the delay, the reranker, the cache and the noise of the settings.

    What is missing is missing for all else. The delay is the search engine's own: what the cache
    holds comes without it. The cache holds what the reranker made of a ranking, which is what takes
    longest. Noise is put over what the cache holds, so that one cache serves every share.

    Args:
        retriever: of any kind.
        config: the section `retrieval` of the settings; sections that it lacks ask for nothing.
        corpus: to draw noise from.

    Raises:
        ValueError, OSError: see `open_scorer`, `with_cache` and `with_noise`.
    """
    return _wrapped(retriever, config, corpus, _scorer_of(config))


def _wrapped(
    retriever: Retriever, config: Mapping[str, Any], corpus: Path | None, scorer: Any
) -> Retriever:
    if config.get("missing", 0.0):
        retriever = Incomplete(retriever, config["missing"], _most_passages(config))
    if config.get("delay_seconds", 0.0):
        retriever = Delayed(retriever, config["delay_seconds"])
    if scorer is not None:
        from sr1_jax.retrieval.rerank import Reranked

        retriever = Reranked(retriever, scorer, config["rerank"]["depth"])
    if "cache" in config:
        retriever = with_cache(retriever, config["cache"])
    if "noise" in config:
        retriever = with_noise(retriever, config["noise"], corpus)
    return retriever


def _most_passages(config: Mapping[str, Any]) -> int | None:
    kind = config.get("kind", "")
    return KINDS[kind].most_passages if kind in KINDS else None


def check_retrieval(config: Mapping[str, Any], passages: int = 1) -> None:
    """Refuses a kind that is not there, or options out of range; opens nothing.

    Args:
        config: the section `retrieval` of the settings.
        passages: that each query is to find.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    kind = _find(config["kind"])
    try:
        kind.check(config)
    except ValueError as error:
        raise ValueError(f"retrieval: {error}") from error
    if kind.most_passages is not None and passages > kind.most_passages:
        raise ValueError(
            f"retrieval.kind={config['kind']!r} finds at most {kind.most_passages} passages a "
            f"query, not rollout.passages={passages}."
        )
    if "rerank" in config:
        check_rerank(config["rerank"])
    if "noise" in config and check_noise(config["noise"]) and config.get("missing", 0.0):
        raise ValueError(
            f"retrieval.missing={config['missing']} excludes retrieval.noise: random passages "
            "would bring back what is missing. Set one of them to 0."
        )


def check_rerank(rerank: Mapping[str, Any]) -> None:
    """Refuses a reranker that is not there; reads nothing.

    Raises:
        ValueError: naming the key.
    """
    folder = rerank["model"]
    if folder and not local_path(folder, "retrieval.rerank.model").is_dir():
        raise ValueError(f"retrieval.rerank.model={folder}: there is no such folder.")


def searched_kinds(config: Mapping[str, Any]) -> set[str]:
    """The kind, and those that it fuses.

    Args:
        config: the section `retrieval` of the settings.
    """
    fused = config["hybrid"]["kinds"] if config["kind"] == "hybrid" else ()
    return {config["kind"], *fused}


def leave_accelerators(config: Mapping[str, Any], index: Path | None = None) -> None:
    """Keeps this process off accelerators, which a run may hold, where no search needs one.

    JAX_PLATFORMS says otherwise. Devices that have been used stay in use.

    Args:
        config: the section `retrieval` of the settings.
        index: one that is searched as it was built, whatever the settings say.
    """
    if index is not None:
        devices = format_of(index) == DENSE_FORMAT
    else:
        kinds = searched_kinds(config)
        devices = "dense" in kinds or any(map(is_import_path, kinds)) or config["rerank"]["model"]
    if not devices and "JAX_PLATFORMS" not in os.environ:
        import jax

        jax.config.update("jax_platforms", "cpu")


def index_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what an index is: without those of what stands around it."""
    settings = {key: value for key, value in dict(config).items() if key not in _AROUND}
    kinds = searched_kinds(config)
    for kind in ("dense", "hybrid"):
        if kind not in kinds:
            settings.pop(kind, None)
    if "hybrid" in settings:  # each kind has an index of its own, and how they are fused is none
        settings["hybrid"] = {"kinds": settings["hybrid"]["kinds"]}
    if "dense" in settings:
        dense = dict(settings["dense"]).items()
        settings["dense"] = {key: value for key, value in dense if key not in _SEARCH_ONLY}
    return settings


def for_other_corpus(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The settings to search another corpus with than the run's own.

    They are those of the run, but for a kind that searches what its servers have: that of BM25.

    Args:
        config: the section `retrieval` of the settings.
    """
    if not _find(config.kind).elsewhere:
        return config
    other = config.copy_and_resolve_references()
    other.kind = "bm25"
    return other


def needs_corpus(config: Mapping[str, Any]) -> bool:
    """Whether the kind needs a corpus or an index; one of the user's own says so itself."""
    return _find(config["kind"]).needs_corpus


def _find(name: str) -> Kind:
    if is_import_path(name):
        return Kind(load(name, "retrieval.kind"))
    if name not in KINDS:
        hint = did_you_mean(name, KINDS)
        raise ValueError(
            f"retrieval.kind={name!r}: there is no such retriever; choose one of "
            f"{', '.join(KINDS)}, or give module:factory.{hint}"
        )
    return KINDS[name]


def fingerprint_of(retriever: Retriever) -> str:
    """What the retriever says it was built from, or "" where it does not say."""
    return str(getattr(retriever, "fingerprint", ""))
