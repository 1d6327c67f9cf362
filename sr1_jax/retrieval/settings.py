"""Settings of retrieval: which kind of retriever a run has, and its options."""

from __future__ import annotations

from sr1_jax.settings import Section, Setting, at_least, between

RETRIEVAL = Section(
    {
        "kind": Setting("bm25", "a kind of retriever by name, or module:factory"),
        "k1": Setting(0.9, "of BM25: saturation of word counts", at_least(0)),
        "b": Setting(0.4, "of BM25: strength of length normalisation", between(0, 1)),
        "stemmer": Setting("english", "of BM25: a Snowball stemmer, or none"),
        "stopwords": Setting("en", "of BM25: language of the words left out, or none"),
        "options": Section({}, open=True),
    }
)
