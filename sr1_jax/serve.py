"""Serves a retriever over HTTP.

    python -m sr1_jax.serve --index=DIR [--port=8000]
    python -m sr1_jax.serve --corpus=FILE.jsonl --config.retrieval.kind=bm25 [--config.KEY=VALUE …]

Speaks POST /retrieve as Search-R1 does, so that its clients work against it, and those of
retrieval.kind=http, its default address being this one. An index alone is searched with the options
that it was built with; any other kind of retriever, a cache or noise are settings, of a file
(--config=FILE) or of the command line. /health, /metrics and /openapi.json tell the rest.

SIGTERM and Ctrl-C end it: what is under way is answered first.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from sr1_jax import cli
from sr1_jax.config_files import override, split_overrides
from sr1_jax.paths import path_or_none

TOKEN_VARIABLE = "SR1_JAX_SERVE_TOKEN"


def main(argv: Sequence[str]) -> None:
    values = _flags()
    _, overrides = split_overrides(argv)
    cli.parse(values, argv, required=(), usage=__doc__)
    config = values.config if values.config is not None else _config_of(overrides)
    token = _token(values.token_file)
    _check_exposure(values.host, token, values.without_token)
    retriever = open_served(
        config,
        path_or_none(values.corpus, "--corpus"),
        path_or_none(values.index, "--index"),
        as_built=values.config is None and not overrides,
    )
    serve(retriever, values, token)


def _flags() -> flags.FlagValues:
    # Here, not above: the settings of a run import all that training does.
    from sr1_jax.training.settings import RUN, unknown_setting

    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("index", "", "Folder of an index; by default data.index.", **define)
    flags.DEFINE_string("corpus", "", "Passages; by default data.corpus.", **define)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.", **define)
    flags.DEFINE_integer("port", 8000, "Port to listen at; 0: any free one.", **define)
    flags.DEFINE_integer("topk", 3, "Passages a query, where a request does not say.", **define)
    flags.DEFINE_string(
        "token_file", "", f"Holds the bearer token; none: the variable {TOKEN_VARIABLE}.", **define
    )
    flags.DEFINE_bool(
        "without_token", False, "Serve other machines without asking for a token.", **define
    )
    flags.DEFINE_integer("threads", os.cpu_count() or 4, "Searches at a time.", **define)
    flags.DEFINE_integer("most_waiting", 256, "Requests that wait for a thread.", **define)
    flags.DEFINE_integer("most_queries", 4096, "Queries in a request.", **define)
    flags.DEFINE_integer("most_topk", 100, "Passages a query.", **define)
    flags.DEFINE_float("most_mib", 4.0, "Of the body of a request.", **define)
    flags.DEFINE_float("grace_seconds", 30.0, "For what is under way at the end.", **define)
    for name in ("topk", "threads", "most_queries", "most_topk"):
        flags.register_validator(name, lambda n: n >= 1, "must be at least 1", flag_values=values)
    return values


def _config_of(overrides: Sequence[tuple[str, str | None]]) -> ml_collections.ConfigDict:
    # Here, not above: the settings of a run import all that training does.
    from sr1_jax.training.settings import RUN, default_config, unknown_setting

    config = default_config()
    for key, value in overrides:
        override(config, key, value, settings=RUN, unknown=unknown_setting)
    return config


def open_served(
    config: ml_collections.ConfigDict, corpus: Path | None, index: Path | None, *, as_built: bool
) -> Any:
    """The retriever to serve.

    Args:
        config: of a run; its sections retrieval and data count.
        corpus: instead of data.corpus.
        index: instead of data.index.
        as_built: whether an index without a corpus is searched with the options it was built with,
            instead of those of the settings.

    Raises:
        ValueError, OSError: see `open_retriever`.
    """
    from sr1_jax.retrieval import check_retrieval, open_retriever
    from sr1_jax.retrieval.open import leave_accelerators, needs_corpus, open_as_built
    from sr1_jax.retrieval.settings import RETRIEVAL

    corpus = corpus or path_or_none(config.data.corpus, "data.corpus")
    index = index or path_or_none(config.data.index, "data.index")
    if as_built and index and not corpus:
        leave_accelerators(config.retrieval, index)
        return open_as_built(index)
    RETRIEVAL.check(config.retrieval, "retrieval.")
    check_retrieval(config.retrieval)
    if needs_corpus(config.retrieval) and not (corpus or index):
        raise ValueError(
            "There is nothing to search: give --index=DIR, an index that python -m sr1_jax.index "
            "built, or --corpus=FILE."
        )
    leave_accelerators(config.retrieval)
    return open_retriever(config.retrieval, corpus, index)


def serve(retriever: Any, values: flags.FlagValues, token: str) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ValueError: the extra `serve` is not installed.
        OSError: the address is taken, or is not one of this machine.
    """
    try:
        import uvicorn

        from sr1_jax.retrieval.server import Limits, make_app
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Serving needs the package {error.name}: pip install 'sr1_jax[serve]'."
        ) from error
    limits = Limits(
        queries=values.most_queries,
        topk=values.most_topk,
        body_bytes=int(values.most_mib * 2**20),
        threads=values.threads,
        waiting=values.most_waiting,
    )
    app = make_app(retriever, limits, topk=min(values.topk, values.most_topk), token=token)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,  # clients keep connections; they should end them, not we
            timeout_graceful_shutdown=values.grace_seconds,
            ws="none",
        )
    )
    listening = _listen(values.host, values.port)
    host, port = listening.getsockname()[:2]
    # uvicorn raises the signal that ended it once more: that is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving at http://{shown}:{port}/retrieve; Ctrl-C ends it.", flush=True)
    server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise OSError(f"--host={host} --port={port}: cannot listen there ({error}).") from error


def _token(file: str) -> str:
    from sr1_jax.retrieval.http_retriever import read_token

    return read_token(file, "--token_file", TOKEN_VARIABLE)


def _check_exposure(host: str, token: str, without_token: bool) -> None:
    """Refuses to serve other machines by oversight."""
    if token or without_token or _is_loopback(host):
        return
    raise ValueError(
        f"--host={host} can be reached from other machines: give a token (--token_file=FILE, or "
        f"{TOKEN_VARIABLE}), or say --without_token if the network is private."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    cli.run(main)
