"""What a run trains on: questions, a corpus behind a retriever, held-out questions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path

import ml_collections

from sr1_jax.agreement import check_same, once_a_file_system
from sr1_jax.data.builder import QuestionSource, open_questions, prepare_questions
from sr1_jax.data.questions import Question, read_questions
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.retrieval.bm25 import none_or
from sr1_jax.world.facts import (
    World,
    build_world,
    one_hop_questions,
    sample_questions,
    two_hop_questions,
    write_corpus,
    write_questions,
)

# One-hop, and as many two-hop, questions of the world; fewer if it is small.
_TRAIN_EACH, _DEV_EACH = 2048, 200


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions and a retriever.

    Attributes:
        train: training questions, random access.
        dev: development sets by name.
        retriever: over the corpus.
        contents: what was read, by key of the config: equal contents, equal values.
        world: the fictional world, where the data is one.
        changed: retriever and questions of the same world with its facts drawn anew.
    """

    train: QuestionSource
    dev: dict[str, list[Question]]
    retriever: BM25Retriever
    contents: dict[str, str]
    world: World | None = None
    changed: tuple[BM25Retriever, list[Question]] | None = None


def prepare_task(config: ml_collections.ConfigDict, workdir: Path) -> Task:
    """Reads and checks all data, builds what is missing below `workdir`/data.

    Of several processes one on each file system builds, and the others wait for it.

    Raises:
        ValueError, FileNotFoundError: of the file, line or key that is wrong, or differs between
            processes.
    """
    folder = workdir / "data"
    task = once_a_file_system(folder, lambda: _prepare(config, folder))
    check_same("The data", task.contents)
    return task


def _prepare(config: ml_collections.ConfigDict, folder: Path) -> Task:
    if config.data.world_people:
        return _world_task(config, folder)
    train, dev = Path(config.data.questions), config.data.dev
    dev_questions = {Path(dev).stem: read_questions(dev)} if dev else {}
    fingerprint = prepare_questions({"train": train}, folder / "questions")
    retriever = open_index(config, Path(config.data.corpus), folder)
    return Task(
        train=open_questions(folder / "questions", "train", fingerprint),
        dev=dev_questions,
        retriever=retriever,
        contents={
            "data.questions": fingerprint,
            "data.dev": _sha256(Path(dev)) if dev else "",
            "data.corpus": retriever.manifest["corpus_sha256"],
        },
    )


def _world_task(config: ml_collections.ConfigDict, folder: Path) -> Task:
    seed, people = config.seed, config.data.world_people
    world = build_world(seed, people=people)
    changed = build_world(seed, facts_seed=seed + 1_000_003, people=people)
    drawn = {"seed": seed, "data.world_people": people}
    _check_same_world(folder / "world.json", drawn)
    dev = _sample(world, "heldout", _DEV_EACH, seed)
    changed_dev = _sample(changed, "heldout", _DEV_EACH, seed)
    train = _sample(world, "train", _TRAIN_EACH, seed)
    if not (folder / "changed_corpus.jsonl").is_file():
        # Drawn in a folder beside it and renamed: half a world is never found.
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".world.", dir=folder.parent))
        write_corpus(world, temporary / "corpus.jsonl")
        write_questions(train, temporary / "train.jsonl")
        write_questions(dev, temporary / "heldout.jsonl")
        write_questions(changed_dev, temporary / "changed_heldout.jsonl")
        write_corpus(changed, temporary / "changed_corpus.jsonl")
        (temporary / "world.json").write_text(json.dumps(drawn) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    fingerprint = prepare_questions({"train": folder / "train.jsonl"}, folder / "questions")
    retriever = open_index(config, folder / "corpus.jsonl", folder)
    return Task(
        train=open_questions(folder / "questions", "train", fingerprint),
        dev={"heldout": dev},
        retriever=retriever,
        contents={
            "data.questions": fingerprint,
            "data.corpus": retriever.manifest["corpus_sha256"],
        },
        world=world,
        changed=(open_index(config, folder / "changed_corpus.jsonl", folder), changed_dev),
    )


def _check_same_world(record: Path, drawn: dict[str, int]) -> None:
    there = json.loads(record.read_text()) if record.is_file() else drawn
    for key, value in drawn.items():
        if there[key] != value:
            raise ValueError(
                f"{record.parent} holds the world of {key}={there[key]}, now it is {value}: use "
                "the old setting or another workdir."
            )


def _sample(world: World, split: str, most: int, seed: int) -> list[Question]:
    kinds = (one_hop_questions, two_hop_questions)
    there = min(sum(1 for _ in kind(world, split, random.Random(0))) for kind in kinds)
    return sample_questions(world, split, each=min(most, there), seed=seed)


def open_index(config: ml_collections.ConfigDict, corpus: Path, folder: Path) -> BM25Retriever:
    """The BM25 index of a corpus, built on first use and again when the file has changed."""
    options = config.retrieval.to_dict()
    options |= {key: none_or(options[key]) for key in ("stemmer", "stopwords")}
    key = hashlib.sha256(repr((sorted(options.items()), str(corpus.resolve()))).encode())
    index = folder / f"index-{key.hexdigest()[:12]}"
    if index.is_dir():
        retriever = BM25Retriever.load(index)
        if corpus.is_file() and retriever.manifest["corpus_sha256"] == _sha256(corpus):
            return retriever
    return BM25Retriever.build(corpus, index, **options)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
