"""BM25 search over a corpus on disk.

The score of passage d for query q is Lucene's variant without its rounding of lengths (Kamphuis et
al., "Which BM25 do you mean?", ECIR 2020, table 1, "Lucene (accurate)"), as the bm25s library
computes it:

    sum over words t of q:
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * L / avgL))

with N passages, n_t of them holding t, f the count of t in d, and L the words of d. A word that
stands twice in the query counts twice. Title and text are indexed as one.

bm25s starts the JAX backend when it is imported. It is therefore imported on first use: on several
hosts, call jax.distributed.initialize() before building or loading an index.
"""

import hashlib
import json
import logging
import math
import operator
import os
import tempfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import Stemmer

from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.retrieval.index_folder import (
    MANIFEST_FILE,
    check_replaceable,
    new_folder,
    read_manifest,
    write_manifest,
)
from sr1_jax.retrieval.passages import PassageStore, PassageWriter

FORMAT = "sr1_jax.bm25"
VERSION = 1
# What decides, beside the corpus, which passages a query finds.
OPTIONS = ("k1", "b", "stemmer", "stopwords")


class BM25Retriever:
    """BM25 search; make one with `build` or `load`. Searches may run in several threads at once.

    Attributes:
        manifest: what `index.json` records: k1, b, stemmer, stopwords, corpus (file name),
            corpus_sha256 (of the file as it was indexed), passages (count).
        corpus_sha256: of the file that was indexed.
        fingerprint: of corpus and options: equal where all searches find the same.
    """

    def __init__(self, bm25: Any, passages: PassageStore, manifest: dict[str, Any]):
        self._bm25 = bm25
        self._passages = passages
        self.manifest = manifest

    @property
    def corpus_sha256(self) -> str:
        return self.manifest["corpus_sha256"]

    @property
    def fingerprint(self) -> str:
        built_from = {key: self.manifest[key] for key in ("corpus_sha256", *OPTIONS)}
        return hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._passages)

    @classmethod
    def build(
        cls,
        corpus_path: str | os.PathLike,
        index_dir: str | os.PathLike,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stemmer: str | None = "english",
        stopwords: str | None = "en",
    ) -> "BM25Retriever":
        """Indexes a corpus and loads the index.

        The index appears in `index_dir` when it is complete, and only then replaces an older one.

        Args:
            corpus_path: see `read_corpus` for its form.
            index_dir: a new or empty folder, or one that holds an older index.
            k1: saturation of word counts, not negative.
            b: strength of length normalisation, 0 to 1.
            stemmer: a Snowball algorithm of PyStemmer, or None for words as they are.
            stopwords: a language of bm25s ("en", "de", ...) whose commonest words are left out, or
                None to keep all words.

        Raises:
            FileNotFoundError: there is no corpus file.
            ValueError: an option out of range, a fault in the corpus (with its line), a corpus
                without words, or an `index_dir` that holds something else.
        """
        _check_options(k1, b, stemmer, stopwords)
        corpus_path, index_dir = Path(corpus_path), Path(index_dir)
        passages = read_corpus(corpus_path)
        check_replaceable(index_dir, kind=FORMAT)
        bm25s = _import_bm25s()
        tokenizer = bm25s.tokenization.Tokenizer(stopwords=stopwords, stemmer=_new_stemmer(stemmer))
        with new_folder(index_dir) as folder:
            digest = sha256_of(corpus_path)
            with PassageWriter(folder) as writer:

                def texts():
                    for passage_id, title, text in passages:
                        writer.add(passage_id, title, text)
                        yield f"{title}\n{text}"

                # Compact arrays: lists would take twice the memory of a large corpus.
                token_ids = [
                    array("i", ids)
                    for ids in tokenizer.streaming_tokenize(texts(), allow_empty=False)
                ]
            vocabulary = tokenizer.get_vocab_dict()
            if not vocabulary:
                raise ValueError(f"{corpus_path}: no passage holds a word that can be indexed.")
            bm25 = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
            bm25.index((token_ids, vocabulary), create_empty_token=False, show_progress=False)
            bm25.save(folder, show_progress=False)
            fields = {
                "format": FORMAT,
                "version": VERSION,
                "k1": k1,
                "b": b,
                "stemmer": stemmer,
                "stopwords": stopwords,
                "corpus": corpus_path.name,
                "corpus_sha256": digest,
                "passages": len(writer),
            }
            write_manifest(folder, fields)
        return cls.load(index_dir)

    @classmethod
    def load(cls, index_dir: str | os.PathLike, mmap: bool = True) -> "BM25Retriever":
        """Opens an index.

        Args:
            index_dir: where `build` put it.
            mmap: map scores and passages, read from disk as searches need them; otherwise read
                everything into memory.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder is no index, is damaged, or is of another version.
        """
        index_dir = Path(index_dir)
        manifest = read_manifest(index_dir, kind=FORMAT, version=VERSION)
        bm25s = _import_bm25s()
        bm25 = bm25s.BM25.load(
            index_dir, mmap=mmap, load_corpus=False, backend="numpy", show_progress=False
        )
        return cls(bm25, PassageStore(index_dir, mmap=mmap), manifest)

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """Finds the `k` best passages for each query.

        Args:
            queries: any strings. Words that no passage holds are ignored.
            k: passages a query, at least 1; may exceed the corpus.

        Returns:
            One list a query, best first, equal scores in corpus order. Only passages that hold a
            word of the query are returned: none at all for a query that is empty, all stop words or
            all unknown.

        Raises:
            ValueError: `k` is less than 1, or `queries` is not a list of strings.
        """
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise ValueError(f"queries must be a list of strings, found {queries!r}.")
        if operator.index(k) < 1:
            raise ValueError(f"k must be at least 1, found {k}.")
        return [self._search_words(words, k) for words in self._tokenize(queries)]

    def _tokenize(self, queries: list[str]) -> list[list[str]]:
        # The module-level function keeps no state; a Tokenizer would remember every query word
        # for ever and is not safe in threads. Neither is a Stemmer, so each call has its own.
        return _import_bm25s().tokenize(
            # A sampled query can hold half a surrogate pair, on which the stemmer would fail.
            [query.encode("utf-8", "replace").decode("utf-8") for query in queries],
            stopwords=self.manifest["stopwords"],
            stemmer=_new_stemmer(self.manifest["stemmer"]),
            return_ids=False,
            show_progress=False,
        )

    def _search_words(self, words: list[str], k: int) -> list[Passage]:
        word_ids = self._bm25.get_tokens_ids(words)
        if not word_ids:
            return []
        scores_N = self._bm25.get_scores_from_ids(word_ids)
        return [
            Passage(*self._passages[index], score=float(scores_N[index]))
            for index in _top_k(scores_N, k).tolist()
        ]


def _top_k(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest positive scores, best first, equal ones in ascending order."""
    candidates = np.flatnonzero(scores_N > 0)
    if len(candidates) > k:
        threshold = np.partition(scores_N[candidates], -k)[-k]
        candidates = candidates[scores_N[candidates] >= threshold]
    return candidates[np.argsort(-scores_N[candidates], kind="stable")][:k]


def _import_bm25s() -> ModuleType:
    import bm25s
    import bm25s.tokenization

    # The library sets its own logger to DEBUG, past whatever level the program chose.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def open_bm25(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> BM25Retriever:
    """The BM25 index in a folder; built there if it is not, or is of another corpus or options.

    Args:
        config: has k1, b, stemmer, stopwords; the last two may be "none".
        corpus: a passage file. Without one the index has to be there, with these options.
        index: the folder. Without one the index is built in a temporary folder and kept in memory.

    Raises:
        FileNotFoundError: there is no such corpus, or no index and no corpus to build it of.
        ValueError: neither corpus nor index is given; an option out of range; an index of other
            options without a corpus; a fault in the corpus or the index.
    """
    options = bm25_options(config)
    if index is None:
        if corpus is None:
            raise ValueError("BM25 needs a corpus, or the folder of an index of one.")
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "index"
            BM25Retriever.build(corpus, built, **options)
            # Read into memory: the files go with the folder.
            return BM25Retriever.load(built, mmap=False)
    if corpus is None:
        retriever = BM25Retriever.load(index)
        _check_same_options(index, retriever.manifest, options)
        return retriever
    if (index / MANIFEST_FILE).is_file():
        retriever = BM25Retriever.load(index)
        same = all(retriever.manifest[key] == value for key, value in options.items())
        if same and corpus.is_file() and retriever.corpus_sha256 == sha256_of(corpus):
            return retriever
    return BM25Retriever.build(corpus, index, **options)


def none_or(name: str | None) -> str | None:
    """A setting that may be none, from the word for it: flags have no other way to say it."""
    return None if name is None or name.lower() in ("", "none") else name


def bm25_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `BM25Retriever.build` from settings.

    Raises:
        ValueError: an option out of range.
    """
    if unread := sorted(config.get("options", {})):
        raise ValueError(
            f"retrieval.options.{unread[0]}: bm25 takes no options; its settings are "
            f"{', '.join(f'retrieval.{key}' for key in OPTIONS)}."
        )
    options = {key: config[key] for key in OPTIONS}
    options |= {key: none_or(options[key]) for key in ("stemmer", "stopwords")}
    _check_options(**options)
    return options


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_same_options(
    index: Path, manifest: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    for key, value in options.items():
        if manifest[key] != value:
            raise ValueError(
                f"{index} was built with {key}={manifest[key]}, but retrieval.{key} is {value}: "
                "set it to that of the index, or build the index again."
            )


def _new_stemmer(name: str | None) -> Stemmer.Stemmer | None:
    return Stemmer.Stemmer(name) if name is not None else None


def _check_options(k1: float, b: float, stemmer: str | None, stopwords: str | None) -> None:
    if not 0 <= k1 < math.inf:
        raise ValueError(f"k1 must be a number that is not negative, found {k1}.")
    if not 0 <= b <= 1:
        raise ValueError(f"b must be from 0 to 1, found {b}.")
    if stemmer is not None and stemmer not in Stemmer.algorithms():
        raise ValueError(
            f"no stemmer {stemmer!r}; choose None or one of {', '.join(Stemmer.algorithms())}."
        )
    if stopwords is not None:
        try:
            _import_bm25s().tokenization.Tokenizer(stopwords=stopwords)
        except ValueError as error:
            raise ValueError(f"stopwords: {error}") from error
