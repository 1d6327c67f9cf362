"""BM25 search over a corpus on disk.

The score of passage d for query q is Lucene's variant without its rounding of lengths (Kamphuis et
al., "Which BM25 do you mean?", ECIR 2020, table 1, "Lucene (accurate)"), bm25s's default:

    sum over words t of q:
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * L / avgL))

with N passages, n_t of them holding t, f the count of t in d, and L the words of d. A word that
stands twice in the query counts twice. Title and text are indexed as one.

Words and stop words are bm25s's, and so is the form of the index on disk: `bm25s.BM25.load` opens
it. Ours are the build on all cores (`bm25_build`) and the search that leaves out what cannot come
into the result (`bm25_search`); bm25s adds up all postings of all words of a query and then looks
at all passages.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sr1_jax.remembered import note_sha256
from sr1_jax.retrieval.base import Passage, check_search
from sr1_jax.retrieval.bm25_build import Progress, build_index, no_progress
from sr1_jax.retrieval.bm25_search import Postings, Searcher
from sr1_jax.retrieval.corpus_files import corpus_sha256
from sr1_jax.retrieval.index_folder import (
    check_replaceable,
    memory_of,
    new_folder,
    read_manifest,
    write_manifest,
)
from sr1_jax.retrieval.passages import PassageStore
from sr1_jax.retrieval.processes import cores
from sr1_jax.retrieval.vocabulary import Vocabulary
from sr1_jax.retrieval.words import QueryWords, check_stemmer, stop_words

FORMAT = "sr1_jax.bm25"
VERSION = 2
# What decides, beside the corpus, which passages a query finds.
OPTIONS = ("k1", "b", "stemmer", "stopwords")
# Queries that a thread takes at a time: fewer, and handing them out costs more than it saves.
_SHARE = 4


class BM25Retriever:
    """BM25 search; make one with `build` or `load`. Searches may run in several threads at once,
    and each search of many queries runs in `threads` threads of its own.

    Attributes:
        manifest: what `index.json` records: k1, b, stemmer, stopwords, corpus (file name),
            corpus_sha256 (of the corpus as it was indexed), passages (count).
        corpus_sha256: of the corpus that was indexed.
        fingerprint: of corpus and options: equal where all searches find the same.
        threads: that search at once; others wait. Each takes four bytes a passage.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], *, mmap: bool, threads: int):
        self.manifest = manifest
        self.threads = threads
        self._passages = PassageStore(folder, mmap=mmap)
        self._vocabulary = Vocabulary(folder, mmap=mmap)
        self._postings = Postings.load(folder, len(self._passages), mmap=mmap)
        self._searcher = Searcher(self._postings, threads)
        self._words = QueryWords(manifest["stemmer"], manifest["stopwords"])
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def corpus_sha256(self) -> str:
        """Of the corpus that was indexed."""
        return self.manifest["corpus_sha256"]

    @property
    def fingerprint(self) -> str:
        """Of corpus and options: equal where all searches find the same."""
        built_from = {key: self.manifest[key] for key in ("corpus_sha256", *OPTIONS)}
        return hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of passages."""
        return len(self._passages)

    def passage(self, number: int) -> Passage:
        """A passage by its place in the corpus, from 0; its score is 0."""
        return Passage(*self._passages[number], score=0.0)

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
        workers: int = 0,
        progress: Progress = no_progress,
    ) -> BM25Retriever:
        """Indexes a corpus and loads the index.

        The index appears in `index_dir` when it is complete, and only then replaces an older one.
        On the way it takes the space of the index and about half as much again.

        Args:
            corpus_path: see `read_corpus` for its forms.
            index_dir: a new or empty folder, or one that holds an older index.
            k1: saturation of word counts, not negative.
            b: strength of length normalisation, 0 to 1.
            stemmer: a Snowball algorithm of PyStemmer, or None for words as they are.
            stopwords: a language of bm25s ("en", "de", ...) whose commonest words are left out, or
                None to keep all words.
            workers: processes that index; 0 for one a core. The index does not depend on it.
            progress: called with what is being done and the share of it that is done.

        Raises:
            FileNotFoundError: there is no corpus.
            ImportError: the corpus is a parquet file and pyarrow is not installed.
            ValueError: an option out of range, a fault in the corpus (with its line), a corpus
                without words, or an `index_dir` that holds something else.
        """
        options = {"k1": k1, "b": b, "stemmer": stemmer, "stopwords": stopwords}
        _check_options(**options)
        corpus_path, index_dir = Path(corpus_path), Path(index_dir)
        check_replaceable(index_dir, kind=FORMAT)
        if not corpus_path.exists():
            raise FileNotFoundError(f"{corpus_path}: no such file; name a corpus.")
        with new_folder(index_dir) as folder:
            built = build_index(
                corpus_path, folder, **options, workers=workers or cores(), progress=progress
            )
            fields = {"format": FORMAT, "version": VERSION, **options, "corpus": corpus_path.name}
            write_manifest(folder, fields | built)
        return cls.load(index_dir)

    @classmethod
    def load(
        cls, index_dir: str | os.PathLike, mmap: bool = True, threads: int = 0
    ) -> BM25Retriever:
        """Opens an index.

        Args:
            index_dir: where `build` put it.
            mmap: map the files, which are then read as searches need them and shared by all
                processes that do so; otherwise read everything into memory.
            threads: that search at once; 0 for one a core.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the folder is no index, is damaged, or is of another version.
        """
        index_dir = Path(index_dir)
        manifest = read_manifest(index_dir, kind=FORMAT, version=VERSION)
        return cls(index_dir, manifest, mmap=mmap, threads=threads or cores())

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """Finds the `k` best passages for each query.

        Args:
            queries: any strings. Words that no passage holds are ignored.
            k: passages a query, at least 1; may exceed the corpus.

        Returns:
            One list a query, best first, equal scores in corpus order. Only passages that hold a
            word of the query are returned: none at all for a query that is empty, all stop words
            or all unknown.

        Raises:
            ValueError: `k` is less than 1, or `queries` is not a list of strings.
        """
        check_search(queries, k)
        search = functools.partial(self._search_some, k=k)
        if self.threads == 1 or len(queries) <= _SHARE:
            return search(queries)
        shares = [queries[i : i + _SHARE] for i in range(0, len(queries), _SHARE)]
        return [found for some in self._threads().map(search, shares) for found in some]

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="bm25")
            return self._pool

    def _search_some(self, queries: list[str], k: int) -> list[list[Passage]]:
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[Passage]:
        numbers = Counter(map(self._vocabulary.find, self._words.split(query)))
        numbers.pop(None, None)  # words that no passage holds
        if not numbers:
            return []
        passages, scores = self._searcher.top(numbers, k)
        return [
            Passage(*self._passages[index], score=score)
            for index, score in zip(passages.tolist(), scores.tolist())
        ]


def open_bm25(
    config: Mapping[str, Any], corpus: Path | None = None, index: Path | None = None
) -> BM25Retriever:
    """The BM25 index in a folder; built there if it is not, or is of another corpus or options.

    An index that is damaged or of an older version is built again too, where there is a corpus.

    Args:
        config: has k1, b, stemmer, stopwords; the last two may be "none".
        corpus: see `read_corpus`. Without one the index has to be there, with these options.
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
    if _is_built_of(index, corpus, options):
        return BM25Retriever.load(index)
    began = time.time()
    retriever = BM25Retriever.build(corpus, index, **options)
    note_sha256(corpus, memory_of(index), retriever.corpus_sha256, read_since=began)
    return retriever


def _is_built_of(index: Path, corpus: Path, options: Mapping[str, Any]) -> bool:
    """Whether a folder holds a whole index of this corpus and these options, in today's form."""
    try:
        manifest = read_manifest(index, kind=FORMAT, version=VERSION)
    except (FileNotFoundError, ValueError):
        return False  # whether it may be replaced is for `build` to say
    same = all(manifest[key] == value for key, value in options.items())
    if not (same and corpus.exists()):
        return False
    return manifest["corpus_sha256"] == corpus_sha256(corpus, memory_of(index))


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


def _check_same_options(
    index: Path, manifest: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    for key, value in options.items():
        if manifest[key] != value:
            raise ValueError(
                f"{index} was built with {key}={manifest[key]}, but retrieval.{key} is {value}: "
                "set it to that of the index, or build the index again."
            )


def _check_options(k1: float, b: float, stemmer: str | None, stopwords: str | None) -> None:
    if not 0 <= k1 < math.inf:
        raise ValueError(f"k1 must be a number that is not negative, found {k1}.")
    if not 0 <= b <= 1:
        raise ValueError(f"b must be from 0 to 1, found {b}.")
    check_stemmer(stemmer)
    stop_words(stopwords)
