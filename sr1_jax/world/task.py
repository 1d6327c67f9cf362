"""The task of a fictional world: questions, passages, and the same world with other facts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.data.questions import Question
from sr1_jax.retrieval import fingerprint_of, for_other_corpus
from sr1_jax.training.task import Task, open_index, prepared_task
from sr1_jax.world.facts import HasPassages, write_corpus, write_questions
from sr1_jax.world.kinds import WORLDS
from sr1_jax.world.warm_start import WorldExamples

# Questions; fewer if the world is small.
_TRAIN, _DEV_COUNT = 4096, 400
_DEV = "heldout"


def world_task(config: ml_collections.ConfigDict, workdir: Path) -> Task:
    """The task of a fictional world; writes what is missing below `workdir`/data.

    data.world, data.world_people and config.seed decide which.

    Its other world, "facts_changed", has the same people, towns, companies and books, but all
    that is true of them is drawn anew: who learned facts by heart fails there.

    Raises:
        ValueError: `workdir` holds another world, or data.world_people is out of range.
    """
    return prepared_task(workdir / "data", lambda folder: _draw(config, folder))


def _draw(config: ml_collections.ConfigDict, folder: Path) -> Task:
    seed, people = config.seed, config.data.world_people
    kind = WORLDS[config.data.world]
    world = kind.build(seed, people=people)
    changed = kind.build(seed, facts_seed=seed + 1_000_003, people=people)
    _check_same_world(folder / "world.json", _drawn_by(config))
    dev = kind.sample(world, _DEV, at_most=_DEV_COUNT, seed=seed)
    changed_dev = kind.sample(changed, _DEV, at_most=_DEV_COUNT, seed=seed)
    if not (folder / "changed_corpus.jsonl").is_file():
        train = kind.sample(world, "train", at_most=_TRAIN, seed=seed)
        _write(
            folder,
            drawn_by=_drawn_by(config),
            corpora={"corpus": world, "changed_corpus": changed},
            questions={"train": train, _DEV: dev, f"changed_{_DEV}": changed_dev},
        )
    fingerprint = prepare_questions({"train": folder / "train.jsonl"}, folder / "questions")
    retriever = open_index(config, folder / "corpus.jsonl", folder)
    elsewhere = config.copy_and_resolve_references()
    elsewhere.retrieval = for_other_corpus(config.retrieval)
    changed_retriever = open_index(elsewhere, folder / "changed_corpus.jsonl", folder)
    return Task(
        train=open_questions(folder / "questions", "train", fingerprint),
        dev={_DEV: dev},
        retriever=retriever,
        contents={"data.questions": fingerprint, "data.corpus": fingerprint_of(retriever)},
        other_worlds={"facts_changed": (changed_retriever, changed_dev)},
        supervised=WorldExamples(config, world, retriever, dev),
    )


def _drawn_by(config: ml_collections.ConfigDict) -> dict[str, int | str]:
    return {
        "seed": config.seed,
        "data.world": config.data.world,
        "data.world_people": config.data.world_people,
    }


def _write(
    folder: Path,
    *,
    drawn_by: Mapping[str, int | str],
    corpora: Mapping[str, HasPassages],
    questions: Mapping[str, Sequence[Question]],
) -> None:
    """Writes all files of a world in a new folder, which then takes its name: half a world is
    never found."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".world.", dir=folder.parent))
    for name, world in corpora.items():
        write_corpus(world, temporary / f"{name}.jsonl")
    for name, asked in questions.items():
        write_questions(asked, temporary / f"{name}.jsonl")
    (temporary / "world.json").write_text(json.dumps(drawn_by) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)


def _check_same_world(record: Path, drawn_by: Mapping[str, int | str]) -> None:
    there = json.loads(record.read_text()) if record.is_file() else drawn_by
    there = {"data.world": "demo"} | there  # once there was no other
    for key, value in drawn_by.items():
        if there[key] != value:
            raise ValueError(
                f"{record.parent} holds the world of {key}={there[key]}, now it is {value}: use "
                "the old setting or another workdir."
            )
