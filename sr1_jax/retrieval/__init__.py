"""Search engines and the corpora they search."""

from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.retrieval.bm25 import BM25Retriever
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.retrieval.open import (
    check_retrieval,
    fingerprint_of,
    for_other_corpus,
    index_settings,
    open_retriever,
)

__all__ = [
    "BM25Retriever",
    "Passage",
    "Retriever",
    "check_retrieval",
    "fingerprint_of",
    "for_other_corpus",
    "index_settings",
    "open_retriever",
    "read_corpus",
]
