"""What a run trains on: questions, something to search, questions held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import ml_collections

from sr1_jax.agreement import check_same, once_a_file_system
from sr1_jax.cli import notice
from sr1_jax.cluster import is_first
from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.prepared import PreparedQuestions
from sr1_jax.data.questions import Question, QuestionFile, read_questions
from sr1_jax.data.sets import tell_sizes
from sr1_jax.data.stream import QuestionSource
from sr1_jax.evaluation.methods import needs_retriever
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import local_path, path_or_none, sha256_of
from sr1_jax.retrieval import Retriever, fingerprint_of, index_settings, open_retriever
from sr1_jax.retrieval.corpus_files import corpus_sha256
from sr1_jax.retrieval.index_folder import MEMORY_FILE
from sr1_jax.storage.places import known_as
from sr1_jax.training.phases import Phase
from sr1_jax.training.supervised import Example
from sr1_jax.training.training_questions import chosen, files_of


class Supervised(Protocol):
    """What a task shows a policy before reinforcement learning."""

    def tokenizer(self) -> Tokenizer:
        """A tokenizer for a policy that is trained from scratch."""
        ...

    def examples(self, phase: Phase, tokenizer: Tokenizer, seed: int) -> Sequence[Example]:
        """The texts of a phase."""
        ...

    def ceiling(self) -> float | None:
        """Exact match that the best of policies would reach on the development questions, where
        that is known."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions and a retriever.

    Attributes:
        train: training questions, random access.
        dev: development questions by the name of their set; only the first set is used while
            training.
        retriever: that questions are answered with; None where nothing is searched.
        contents: fingerprints of what was read, by key of the config: equal contents, equal
            values. A run is only resumed with the same.
        other_worlds: by name, further questions for the final evaluation, with a retriever of
            their own.
        supervised: examples to imitate; None where there are none.
    """

    train: QuestionSource
    dev: Mapping[str, Sequence[Question]]
    retriever: Retriever | None
    contents: Mapping[str, str]
    other_worlds: Mapping[str, tuple[Retriever, Sequence[Question]]] = dataclasses.field(
        default_factory=dict
    )
    supervised: Supervised | None = None


def prepared_task(folder: Path, prepare: Callable[[Path], Task]) -> Task:
    """The task that `prepare` makes of what it finds, or builds, in a folder.

    Of several processes one on each file system builds, and the others wait for it.

    Args:
        folder: for indices and the like.
        prepare: folder -> task.

    Raises:
        ValueError: processes read different contents; names the key of the config.
    """
    task = once_a_file_system(folder, lambda: prepare(folder))
    check_same("The data", dict(task.contents))
    return task


def files_task(config: ml_collections.ConfigDict, workdir: Path) -> Task:
    """The task of question files and a corpus; builds what is missing below `workdir`/data.

    Raises:
        ValueError, FileNotFoundError: of the file, line or key that is wrong, or differs between
            processes.
    """
    return prepared_task(workdir / "data", lambda folder: _read_files(config, folder))


def _read_files(config: ml_collections.ConfigDict, folder: Path) -> Task:
    files = files_of(config, "questions", training=True)
    dev = files_of(config, "dev", training=False)
    # Read first: a slip in a small file is found before a large corpus is indexed.
    dev_questions = {"+".join(map(_bare_name, dev)): read_questions(*dev)} if dev else {}
    fingerprint = prepare_questions({"train": files}, folder / "questions")
    train = open_questions(folder / "questions", "train", fingerprint)
    if is_first():
        _tell_sizes(files, dev, train, dev_questions)
    train, fingerprint = chosen(config, train, fingerprint)
    searches = needs_retriever(config, config.method)
    retriever = run_retriever(config, folder) if searches else None
    if config.steps and not dev and is_first():
        notice("data.dev is not set: no checkpoint gets a score, and none is kept as the best.")
    return Task(
        train=train,
        dev=dev_questions,
        retriever=retriever,
        contents={
            "data.questions": fingerprint,
            "data.dev": _fingerprint_of_files(dev),
            "data.corpus": _fingerprint_of_corpus(config, retriever, folder),
        },
    )


def _fingerprint_of_corpus(
    config: ml_collections.ConfigDict, retriever: Retriever | None, folder: Path
) -> str:
    """What the retriever says it was built from; of one that does not say, the corpus file."""
    if retriever is None:
        return ""
    corpus = path_or_none(config.data.corpus, "data.corpus")
    said = fingerprint_of(retriever)
    if said or corpus is None or not corpus.exists():
        return said
    return corpus_sha256(corpus, folder / MEMORY_FILE)


def run_retriever(config: ml_collections.ConfigDict, folder: Path | None) -> Retriever:
    """The retriever of a run: over data.index, or over data.corpus with an index in `folder`.

    Args:
        config: of the run.
        folder: for an index, and what was found out of the corpus; None, where there is none, needs
            data.index.

    Raises:
        ValueError: data.index was built of another corpus than data.corpus.
    """
    data = config.data
    if not data.index:
        return open_index(config, path_or_none(data.corpus, "data.corpus"), folder)
    retriever = open_retriever(config.retrieval, index=local_path(data.index, "data.index"))
    built_of = getattr(retriever, "corpus_sha256", None)
    corpus = path_or_none(data.corpus, "data.corpus")
    if corpus is None or built_of is None:
        return retriever
    memory = folder and folder / MEMORY_FILE
    if built_of != corpus_sha256(corpus, memory):
        raise ValueError(
            f"data.index={data.index} was built of another corpus than data.corpus={data.corpus}: "
            "clear one of the two, or build the index again."
        )
    return retriever


def corpus_retriever(
    config: ml_collections.ConfigDict, corpus: Path | None, folder: Path | None
) -> Retriever:
    """The retriever of a program that may have no run of its own.

    Args:
        config: of the run.
        corpus: passages; None stands for what the config names.
        folder: keeps an index; None: one that is needed is built in memory.

    Raises:
        ValueError, FileNotFoundError: as `run_retriever`.
    """
    if corpus is None and config.data.index:
        return run_retriever(config, folder)
    if corpus is None and config.data.corpus:
        corpus = local_path(config.data.corpus, "data.corpus")
    if folder is None:
        return open_retriever(config.retrieval, corpus)
    return open_index(config, corpus, folder)


def open_index(config: ml_collections.ConfigDict, corpus: Path | None, folder: Path) -> Retriever:
    """The retriever over a corpus; an index it needs is built in `folder` on first use, and again
    when the corpus has changed."""
    return open_retriever(config.retrieval, corpus, folder / index_name(config, corpus))


def index_name(config: ml_collections.ConfigDict, corpus: Path | None) -> str:
    """What the folder of an index over a corpus is called below a run's data."""
    settings = sorted(index_settings(config.retrieval.to_dict()).items())
    told = (settings, str(corpus and known_as(corpus)))
    return f"index-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def _bare_name(file: QuestionFile) -> str:
    return f"{file.source}_{file.split}" if file.source else file.path.name.partition(".")[0]


def _tell_sizes(
    files: Sequence[QuestionFile],
    dev_files: Sequence[QuestionFile],
    train: PreparedQuestions,
    dev: Mapping[str, Sequence[Question]],
) -> None:
    numbers = train.index.source_Q
    counts = {name: int((numbers == n).sum()) for n, name in enumerate(train.index.sources)}
    tell_sizes(files, counts)
    tell_sizes(dev_files, Counter(q.source for questions in dev.values() for q in questions))


def _fingerprint_of_files(files: Sequence[QuestionFile]) -> str:
    if not files:
        return ""
    # The content of a file that was given by its path says all.
    told = (sha256_of(f.path) + (f"{f.source}:{f.split}" if f.source else "") for f in files)
    return hashlib.sha256("".join(told).encode()).hexdigest()
