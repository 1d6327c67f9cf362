"""Settings of retrieval: which kind of retriever a run has, and its options."""

from __future__ import annotations

from typing import Any

from sr1_jax.retrieval.wire import addresses
from sr1_jax.settings import Section, Setting, above, at_least, between, one_of, or_none


def _addresses(value: Any) -> str | None:
    try:
        addresses(value)
    except (ValueError, AttributeError):
        return "hold addresses, http://HOST:PORT/retrieve, with commas between them"
    return None


# Of the client of retrieval.kind="http". A resumed run may ask other servers: it is held to what
# they search.
HTTP = Section(
    {
        "urls": Setting(
            "http://127.0.0.1:8000/retrieve",
            "addresses of servers; several, with commas, are asked in turn and stand in for each "
            "other",
            _addresses,
        ),
        "timeout_seconds": Setting(10.0, "until an attempt is given up", above(0)),
        "attempts": Setting(4, "at a request, over all addresses together", at_least(1)),
        "backoff_seconds": Setting(
            0.25, "before an address is asked again; doubles, and varies", at_least(0)
        ),
        "queries": Setting(256, "in one request at most", at_least(1)),
        "connections": Setting(16, "kept open for each server", at_least(1)),
        "token_file": Setting(
            "", "holds the bearer token; none: the variable SR1_JAX_RETRIEVAL_TOKEN"
        ),
    },
    free_on_resume=True,
)

# Random passages instead of some of those that were found.
NOISE = Section(
    {
        "start": Setting(0.0, "share that is replaced when training begins", between(0, 1)),
        "end": Setting(
            None,
            "the share from step noise.steps on; None: as start",
            or_none(between(0, 1)),
            float,
        ),
        "steps": Setting(0, "over which the share goes from start to end", at_least(0)),
        "base": Setting(4.0, "1: the share changes evenly; above 1: late", above(0)),
        "evaluation": Setting(0.0, "the share outside of training steps", between(0, 1)),
        "seed": Setting(0, "of what is replaced, and by what", at_least(0)),
    }
)

CACHE = Section(
    {
        "kind": Setting(
            "none",
            "where results are kept: none, memory (of a process), disk (shared by the processes "
            "of a host)",
            one_of("none", "memory", "disk"),
        ),
        "mib": Setting(256, "that it holds at most", above(0)),
        "folder": Setting("", "of a cache on disk; none: ~/.cache/sr1_jax/retrieval"),
    },
    free_on_resume=True,
)

RETRIEVAL = Section(
    {
        "kind": Setting("bm25", "a kind of retriever by name, or module:factory"),
        "k1": Setting(0.9, "of BM25: saturation of word counts", at_least(0)),
        "b": Setting(0.4, "of BM25: strength of length normalisation", between(0, 1)),
        "stemmer": Setting("english", "of BM25: a Snowball stemmer, or none"),
        "stopwords": Setting("en", "of BM25: language of the words left out, or none"),
        "http": HTTP,
        "noise": NOISE,
        "cache": CACHE,
        "delay_seconds": Setting(
            0.0, "that every call of the retriever takes more", at_least(0), free_on_resume=True
        ),
        "options": Section({}, open=True),
    }
)
