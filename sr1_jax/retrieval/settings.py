"""Settings of retrieval: which kind of retriever a run has, and its options."""

from __future__ import annotations

import re
from typing import Any

from sr1_jax.http_exchange import address_problem
from sr1_jax.import_path import is_import_path
from sr1_jax.retrieval.web_wire import URL
from sr1_jax.retrieval.wire import addresses
from sr1_jax.settings import (
    Section,
    Setting,
    above,
    at_least,
    between,
    increasing_lengths,
    one_of,
    or_none,
    whole_at_least,
)


def _addresses(value: Any) -> str | None:
    try:
        addresses(value)
    except (ValueError, AttributeError):
        return "hold addresses, http://HOST:PORT/retrieve, with commas between them"
    return None


def _kinds(value: Any) -> str | None:
    good = isinstance(value, (tuple, list)) and len(value) >= 2 and len(set(value)) == len(value)
    names = good and all(isinstance(kind, str) for kind in value)
    if names and all(kind in ("bm25", "dense") or is_import_path(kind) for kind in value):
        return None
    return "hold two or more of bm25, dense and module:factory, each once"


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
            "", "holds the bearer token; empty: the variable SR1_JAX_RETRIEVAL_TOKEN"
        ),
    },
    free_on_resume=True,
)


def _web_address(value: Any) -> None:
    # Raised here, not returned: messages of sections repeat the value, which may hold a key.
    if problem := address_problem(value):
        raise ValueError(f"retrieval.web.url must {problem}.")


def _code(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"([A-Za-z]{2,3}(-[A-Za-z]{2,4})?)?", value)
    return None if good else "be a code of two letters, such as en or US, or empty"


def _variable(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value)
    return None if good else "be the name of an environment variable, such as BRAVE_API_KEY"


# Of retrieval.kind="web". What decides what is found may not change in a resumed run.
WEB = Section(
    {
        "url": Setting(URL, "of a web search that speaks as Brave's does", _web_address),
        "key_variable": Setting(
            "BRAVE_API_KEY",
            "name of the environment variable with the API's key",
            _variable,
            free_on_resume=True,
        ),
        "country": Setting("", "that results are for, such as US; empty: the provider's", _code),
        "language": Setting("", "of results, such as en; empty: the provider's", _code),
        "safe_search": Setting(
            "moderate", "off, moderate, strict", one_of("off", "moderate", "strict")
        ),
        "extra_snippets": Setting(
            False, "up to five more snippets a result, where the plan has them"
        ),
        "timeout_seconds": Setting(
            10.0, "until an attempt is given up", above(0), free_on_resume=True
        ),
        "attempts": Setting(4, "at a query", whole_at_least(1), free_on_resume=True),
        "backoff_seconds": Setting(
            0.5,
            "before the second attempt; doubles, and varies; longer where the server asks for it",
            at_least(0),
            free_on_resume=True,
        ),
        "connections": Setting(
            8, "requests under way at a time", whole_at_least(1), free_on_resume=True
        ),
        "requests_per_second": Setting(
            None,
            "that are sent at most, by each process; None: no limit",
            or_none(above(0)),
            float,
            free_on_resume=True,
        ),
        "max_requests": Setting(
            None,
            "that are sent at most, attempts that failed included; None: no limit",
            or_none(whole_at_least(1)),
            int,
            free_on_resume=True,
        ),
        "ledger": Setting(
            "",
            "file that counts requests towards max_requests, over processes and restarts; empty: "
            "each start counts from 0",
            free_on_resume=True,
        ),
        "when_used_up": Setting(
            "stop",
            "after max_requests, or when the plan's quota is used up: the run ends (stop), or "
            "searches find nothing and are counted (empty)",
            one_of("stop", "empty"),
            free_on_resume=True,
        ),
        "cost_per_request": Setting(
            0.0, "in any currency; what was spent is counted", at_least(0), free_on_resume=True
        ),
    }
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
        "folder": Setting("", "of a cache on disk; empty: ~/.cache/sr1_jax/retrieval"),
    },
    free_on_resume=True,
)

# Of retrieval.kind="dense". What stands in `search` decides nothing of the index.
DENSE = Section(
    {
        # An index is held to what the encoder is; where it lies may change.
        "encoder": Setting(
            "", "folder of the model that makes vectors of texts", free_on_resume=True
        ),
        "encoder_dtype": Setting(
            "float32", "what it computes in: float32, bfloat16", one_of("float32", "bfloat16")
        ),
        "pooling": Setting(
            None,
            "mean, cls or last token; None: as the model says",
            or_none(one_of("mean", "cls", "last")),
            str,
        ),
        "normalized": Setting(None, "vectors of length 1; None: as the model says", type=bool),
        "max_tokens": Setting(
            None, "of a text, the rest is cut; None: as the model says", or_none(at_least(1)), int
        ),
        "query_prefix": Setting(None, "put before queries; None: as the model says", type=str),
        "passage_prefix": Setting(None, "put before passages; None: as the model says", type=str),
        "dtype": Setting(
            "bfloat16",
            "what vectors are kept in: float32, bfloat16, int8 with a scale for each",
            one_of("float32", "bfloat16", "int8"),
        ),
        "vectors": Setting(
            "",
            "vectors of the corpus made elsewhere: .npy, or a flat index of FAISS",
            free_on_resume=True,
        ),
        "search": Section(
            {
                "top_k": Setting(
                    "exact",
                    "exact, or approximate: jax.lax.approx_max_k, which is exact on CPUs",
                    one_of("exact", "approximate"),
                ),
                "recall": Setting(
                    0.95,
                    "that approximate asks for",
                    between(0, 1, open_below=True, open_above=True),
                ),
                "faiss": Setting(
                    "",
                    "an index that FAISS makes of the vectors and searches on the hosts' "
                    "processors, as its index_factory names it, such as HNSW32 or IVF4096,Flat; "
                    "empty: the devices search",
                ),
                "faiss_parameters": Setting(
                    "", "of its searches, such as efSearch=128 or nprobe=16; empty: FAISS's own"
                ),
                "block": Setting(
                    0,
                    "vectors that a device compares at a time; 0: as suits its kind",
                    at_least(0),
                    free_on_resume=True,
                ),
                "batches": Setting(
                    (1, 8, 16, 32, 64, 256),
                    "sizes of batches of queries; each is compiled once",
                    increasing_lengths(),
                    free_on_resume=True,
                ),
            }
        ),
    }
)

HYBRID = Section(
    {
        "kinds": Setting(("bm25", "dense"), "of retrievers whose rankings are fused", _kinds),
        "k": Setting(60, "added to each rank: the larger, the flatter", at_least(0)),
        "depth": Setting(100, "passages that each ranking has", at_least(1)),
    }
)

# A cross-encoder that orders anew what a retriever of any kind found.
RERANK = Section(
    {
        "model": Setting(
            "",
            "folder of a cross-encoder that ranks what is found; empty: as found",
            free_on_resume=True,  # the retriever's fingerprint tells models apart
        ),
        "dtype": Setting(
            "float32", "what it computes in: float32, bfloat16", one_of("float32", "bfloat16")
        ),
        "depth": Setting(20, "passages that are found for it to rank", at_least(1)),
        "max_tokens": Setting(
            None,
            "of query and passage, the rest of the passage is cut; None: 512, or the model's fewer",
            or_none(at_least(1)),
            int,
        ),
        "batch": Setting(32, "pairs scored at a time", at_least(1), free_on_resume=True),
    }
)

RETRIEVAL = Section(
    {
        "kind": Setting("bm25", "a kind of retriever by name, or module:factory"),
        "k1": Setting(0.9, "of BM25: saturation of word counts", at_least(0)),
        "b": Setting(0.4, "of BM25: strength of length normalisation", between(0, 1)),
        "stemmer": Setting("english", "of BM25: a Snowball stemmer, or none"),
        "stopwords": Setting("en", "of BM25: language of the words left out, or none"),
        "dense": DENSE,
        "hybrid": HYBRID,
        "rerank": RERANK,
        "http": HTTP,
        "web": WEB,
        "noise": NOISE,
        "cache": CACHE,
        "missing": Setting(
            0.0,
            "share of the passages that no search finds, always the same: an incomplete corpus",
            between(0, 1, open_above=True),
        ),
        "delay_seconds": Setting(
            0.0, "that every call of the retriever takes more", at_least(0), free_on_resume=True
        ),
        "options": Section({}, open=True),
    }
)
