"""Question files as a TensorFlow Datasets (TFDS) data set: ArrayRecord files, random access.

Below `data_dir` TFDS keeps one folder a content: `sr1_questions/<fingerprint>/<version>/`, where
the fingerprint is a hash of the question files. A changed file thus gets a new folder, and old
records are never served for it. `sr1_questions/current.json` names the fingerprint prepared last.

TensorFlow is not needed and not imported; nothing is looked up on the network.
"""

import hashlib
import json
import operator
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from sr1_jax.data.questions import Question, read_questions
from sr1_jax.paths import sha256_of

_NAME = "sr1_questions"
_VERSION = "1.0.0"
_CURRENT_FILE = "current.json"


class _LocalInfo(tfds.core.DatasetInfo):
    """Never asks the TFDS bucket for published metadata of a data set of the same name."""

    def initialize_from_bucket(self) -> None:
        pass


# Not registered: tfds.load cannot make one, as it has no questions to give it.
class QuestionBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes questions, in their order, and reads them back."""

    name = _NAME
    VERSION = tfds.core.Version(_VERSION)

    def __init__(self, *, questions: Mapping[str, Sequence[Question]] | None = None, **kwargs: Any):
        self._questions = questions or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "id": text(),
                "question": text(),
                "golden_answers": tfds.features.Sequence(text()),
                "metadata": text(),  # JSON: its keys differ from source to source
            }
        )
        return _LocalInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(rows) for split, rows in self._questions.items()}

    def _generate_examples(self, questions: Sequence[Question]) -> Iterator:
        for index, question in enumerate(questions):
            yield (
                index,
                {
                    "id": question.id,
                    "question": question.question,
                    "golden_answers": list(question.golden_answers),
                    "metadata": json.dumps(question.metadata, ensure_ascii=False),
                },
            )

    # TFDS prints both messages to stdout, whatever the log level.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class PreparedQuestions:
    """Random access to the questions of one split, in file order; safe in threads."""

    def __init__(self, records: Any):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Question:
        record = self._records[range(len(self))[operator.index(index)]]
        return Question(
            id=record["id"].decode(),
            question=record["question"].decode(),
            golden_answers=tuple(answer.decode() for answer in record["golden_answers"]),
            metadata=json.loads(record["metadata"]),
        )


# One question file of a split, or several.
Files = str | os.PathLike | Sequence[str | os.PathLike]


def prepare_questions(files: Mapping[str, Files], data_dir: str | os.PathLike) -> str:
    """Makes a TFDS data set of question files, unless one of the same content is there.

    Safe to repeat and to interrupt: a data set is moved into place when it is complete. Turns off
    TFDS's progress bars for the rest of the process.

    Args:
        files: question file or files (see `read_questions`) of each split. A split's name is a
            letter, then letters, digits and underscores.
        data_dir: local folder for data sets.

    Returns:
        The fingerprint of the files, for `open_questions`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a fault in a file (with its line), a bad split name, or a file that changed
            while it was read.
    """
    _check_splits(files)
    fingerprint = _fingerprint(files)
    data_dir = Path(data_dir)
    if not _is_prepared(data_dir, fingerprint):
        questions = {split: read_questions(*_paths(given)) for split, given in files.items()}
        if _fingerprint(files) != fingerprint:
            raise ValueError("A question file changed while it was read; run again.")
        _build(questions, data_dir, fingerprint)
    _write_current(data_dir, fingerprint)
    return fingerprint


def open_questions(
    data_dir: str | os.PathLike, split: str, fingerprint: str | None = None
) -> PreparedQuestions:
    """Opens a prepared split.

    Args:
        data_dir: as given to `prepare_questions`.
        split: name of the split.
        fingerprint: which content, as `prepare_questions` returned it; by default what was prepared
            last in `data_dir`. Give it where several runs share `data_dir`.

    Raises:
        FileNotFoundError: nothing was prepared here.
        ValueError: there is no such split.
    """
    data_dir = Path(data_dir)
    fingerprint = fingerprint or _read_current(data_dir)
    if not _is_prepared(data_dir, fingerprint):
        raise FileNotFoundError(
            f"{data_dir} holds no questions of fingerprint {fingerprint}; "
            "prepare them with prepare_questions."
        )
    with _quiet_tfds():
        builder = _new_builder(data_dir, fingerprint)
        if split not in builder.info.splits:
            raise ValueError(
                f"no split {split!r} in {data_dir}; there are {', '.join(builder.info.splits)}."
            )
        return PreparedQuestions(builder.as_data_source(split=split))


def _paths(given: Files) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(p) for p in given]


def _check_splits(files: Mapping[str, Files]) -> None:
    if not files:
        raise ValueError("No question files given; name at least one split and its file.")
    for split, given in files.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split.lower() == "all":
            raise ValueError(
                f"split name {split!r}: use a letter, then letters, digits and underscores; "
                "'all' is reserved."
            )
        for path in _paths(given):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file (questions of split {split!r}).")


def _fingerprint(files: Mapping[str, Files]) -> str:
    digest = hashlib.sha256()
    for split in sorted(files):
        for path in _paths(files[split]):
            digest.update(f"{split} {sha256_of(path)}\n".encode())
    return digest.hexdigest()[:24]


def _new_builder(data_dir: Path, fingerprint: str, **kwargs: Any) -> QuestionBuilder:
    config = tfds.core.BuilderConfig(name=fingerprint, description="Questions and their answers.")
    return QuestionBuilder(data_dir=data_dir, config=config, **kwargs)


def _is_prepared(data_dir: Path, fingerprint: str) -> bool:
    # TFDS gives a folder its final name only when everything in it is written.
    return (data_dir / _NAME / fingerprint / _VERSION / "dataset_info.json").is_file()


def _build(questions: dict[str, list[Question]], data_dir: Path, fingerprint: str) -> None:
    tfds.disable_progress_bar()
    with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        builder = _new_builder(data_dir, fingerprint, questions=questions)
        try:
            builder.download_and_prepare(download_dir=downloads)
        except OSError:
            # Another process of the same run may have moved the same content into place first.
            if not _is_prepared(data_dir, fingerprint):
                raise


@contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from logging that the configuration is a custom one, and each of its steps."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _write_current(data_dir: Path, fingerprint: str) -> None:
    path = data_dir / _NAME / _CURRENT_FILE
    content = json.dumps({"fingerprint": fingerprint})
    # A data set that is shared read-only and up to date needs no writing.
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    new_path = path.with_name(f".{_CURRENT_FILE}.{uuid.uuid4().hex[:8]}")
    new_path.write_text(content, encoding="utf-8")
    os.replace(new_path, path)


def _read_current(data_dir: Path) -> str:
    path = data_dir / _NAME / _CURRENT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{data_dir} holds no prepared questions; prepare them with prepare_questions."
        )
    return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
