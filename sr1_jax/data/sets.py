"""Question sets by name: which there are, under which names their files are kept, how big they are.

A set is asked for as NAME or NAME:SPLIT below a folder in which the files of FlashRAG
(https://huggingface.co/datasets/RUC-NLPIR/FlashRAG_datasets) or of Search-R1
(https://huggingface.co/datasets/PeterJinGo/nq_hotpotqa_train) lie. Nothing is downloaded.

Sizes: of the splits that are evaluated, and of the training splits of NQ and HotpotQA, those of
Search-R1 (arXiv 2503.09516); of all others FlashRAG's (arXiv 2405.13576).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sr1_jax.cli import notice
from sr1_jax.data import search_r1
from sr1_jax.data.questions import Question, QuestionFile, read_questions
from sr1_jax.paths import local_path
from sr1_jax.settings import did_you_mean

SPLITS = ("train", "dev", "test")
# Folders in which Search-R1's scripts put train.parquet and test.parquet.
_PARQUET_FOLDERS = ("", "nq_hotpotqa_train/", "nq_search/")


@dataclass(frozen=True)
class QuestionSet:
    """A set.

    Attributes:
        name: of the set, and of the source of its questions.
        sizes: questions of each official split.
        evaluated: the split that published tables report.
    """

    name: str
    sizes: Mapping[str, int]
    evaluated: str


SETS: Mapping[str, QuestionSet] = {
    name: QuestionSet(name, sizes, evaluated)
    for name, evaluated, sizes in (
        ("nq", "test", {"train": 79_168, "dev": 8_757, "test": 3_610}),
        ("triviaqa", "test", {"train": 78_785, "dev": 8_837, "test": 11_313}),
        ("popqa", "test", {"test": 14_267}),
        ("hotpotqa", "dev", {"train": 90_447, "dev": 7_405}),
        ("2wikimultihopqa", "dev", {"train": 15_000, "dev": 12_576}),
        ("musique", "dev", {"train": 19_938, "dev": 2_417}),
        ("bamboogle", "test", {"test": 125}),
    )
}

# Sets that are read one after the other; data.weights says in which shares they are drawn.
MIXTURES: Mapping[str, tuple[str, ...]] = {"nq_hotpotqa": ("nq", "hotpotqa")}

Tell = Callable[[str], None]


def is_name(spec: str | os.PathLike) -> bool:
    """Whether a spec names a set or a mixture, rather than a file."""
    name = str(spec).partition(":")[0]
    return name in SETS or name in MIXTURES


def read_set(
    spec: str | os.PathLike,
    folder: str | os.PathLike = "",
    *,
    training: bool = False,
    tell: Tell = notice,
) -> list[Question]:
    """Reads a question set.

    Args:
        spec: NAME or NAME:SPLIT of a set or mixture, or the path of a file.
        folder: that names are looked up in.
        training: without a split the training split is meant; otherwise the one evaluated.
        tell: gets a line where a set has not its official size.

    Raises:
        FileNotFoundError: no such file; names all that were tried, and where to get the set.
        ImportError: a parquet file, and pyarrow is not installed.
        ValueError: there is no such set or split, or a file has a fault, named with its line.
    """
    files = question_files(spec, folder, training=training)
    questions = read_questions(*files)
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.source] = counts.get(question.source, 0) + 1
    tell_sizes(files, counts, tell)
    return questions


def question_files(
    spec: str | os.PathLike,
    folder: str | os.PathLike = "",
    *,
    training: bool = False,
    key: str = "data.folder",
) -> list[QuestionFile]:
    """Finds the files of a set; arguments and errors as `read_set`.

    Args:
        spec: as there.
        folder: as there.
        training: as there.
        key: of the setting that gives the folder, for messages.
    """
    if not is_name(spec):
        return [_by_path(spec)]
    name, colon, split = str(spec).partition(":")
    if colon and split not in SPLITS:
        raise ValueError(f"{spec}: the splits of a set are {', '.join(SPLITS)}, not {split!r}.")
    if not str(folder):
        raise ValueError(
            f"{spec} names a question set: set {key} to the folder that holds its files."
        )
    folder = local_path(str(folder), key)
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}={folder}: no such folder; {spec} is looked for in it.")
    chosen = [SETS[member] for member in MIXTURES.get(name, (name,))]
    return [_find(one, split or ("train" if training else one.evaluated), folder) for one in chosen]


def tell_sizes(
    files: Sequence[QuestionFile], counts: Mapping[str, int], tell: Tell = notice
) -> None:
    """Says of each set how far it is from its official size, if it is.

    Args:
        files: of the sets.
        counts: questions read, by source.
        tell: gets a line for each.
    """
    wanted: dict[str, int | None] = {}
    splits: dict[str, list[str]] = {}
    for file in files:
        if not file.source:
            # Rows of a file that was given by its path may be of any source.
            return
        size = SETS[file.source].sizes.get(file.split)
        known = wanted.get(file.source, 0)
        wanted[file.source] = None if size is None or known is None else known + size
        splits.setdefault(file.source, []).append(file.split)
    for source, size in wanted.items():
        if size is not None and counts.get(source, 0) != size:
            tell(
                f"{source}:{'+'.join(splits[source])} has {counts.get(source, 0):,} questions "
                f"here, officially {size:,}: scores are not comparable with published ones."
            )


def _by_path(spec: str | os.PathLike) -> QuestionFile:
    path = local_path(os.fspath(spec), "questions")
    if not path.exists() and path.name == str(spec) and not path.suffix:
        name = path.name.partition(":")[0]
        names = [*SETS, *MIXTURES]
        hint = did_you_mean(name, names)
        raise FileNotFoundError(
            f"{spec}: neither a file nor a question set; the sets are {', '.join(names)}.{hint}"
        )
    return QuestionFile(path)


def _find(one: QuestionSet, split: str, folder: Path) -> QuestionFile:
    lines = (f"{one.name}/{split}", f"{one.name}_{split}", f"{split}_{one.name}")
    tried = [f"{stem}{ending}" for stem in lines for ending in (".jsonl", ".jsonl.gz")]
    for name in tried:
        if (folder / name).is_file():
            return QuestionFile(folder / name, one.name, split)
    rows = [f"{place}{file}" for place in _PARQUET_FOLDERS if (file := _parquet_of(one, split))]
    for name in rows:
        path = folder / name
        if path.is_file() and one.name in search_r1.sources_in(path):
            return QuestionFile(path, one.name, split)
    tried += [f"{name} (rows with data_source {one.name})" for name in rows]
    raise FileNotFoundError(
        f"{one.name}:{split} is not in {folder}: looked for {', '.join(tried)}. "
        + _how_to_get(one, split, folder)
    )


def _parquet_of(one: QuestionSet, split: str) -> str:
    """Search-R1's file that has a split, if one does: its test.parquet has of each set the split
    that is evaluated, whatever that is called."""
    if split == "train" or split == one.evaluated:
        return f"{'train' if split == 'train' else 'test'}.parquet"
    return ""


def _how_to_get(one: QuestionSet, split: str, folder: Path) -> str:
    if split not in one.sizes:
        return f"{one.name} has no official split {split}; it has {', '.join(one.sizes)}."
    command = (
        f"hf download RUC-NLPIR/FlashRAG_datasets {one.name}/{split}.jsonl "
        f"--repo-type dataset --local-dir {folder}"
    )
    in_search_r1 = split == one.evaluated or (split == "train" and one.name in ("nq", "hotpotqa"))
    other = (
        f", or {_parquet_of(one, split)} of PeterJinGo/nq_hotpotqa_train in the same way"
        if in_search_r1
        else ""
    )
    return f"Get it by `{command}`{other}."
