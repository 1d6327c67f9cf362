"""Question files as a TensorFlow Datasets (TFDS) data set: ArrayRecord files, random access.

Below `data_dir` there is one folder a content: `sr1_questions/<fingerprint>/<version>/`, where
the fingerprint is a hash of the question files. A changed file thus gets a new folder, and old
records are never served for it. `sr1_questions/current.json` names the fingerprint prepared last.

A folder is moved into place when all is written, with `checksums.json`, the hashes of its files. It
is compared whenever the data set is prepared or opened: what is damaged or incomplete is prepared
anew while the question files are at hand, and refused by name where they are not.

TensorFlow is not needed and not imported; nothing is looked up on the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict, SplitInfo

from sr1_jax.cli import notice
from sr1_jax.data.prepared import PreparedQuestions, QuestionIndex, Records, write_records
from sr1_jax.data.questions import AnyFile, Question, QuestionFile, scan_questions
from sr1_jax.paths import sha256_of, write_whole

_NAME = "sr1_questions"
_VERSION = "1.1.0"  # 1.0.0 had neither checksums nor an index
_CURRENT_FILE = "current.json"
_CHECKSUMS_FILE = "checksums.json"


class _LocalInfo(tfds.core.DatasetInfo):
    """Never asks the TFDS bucket for published metadata of a data set of the same name."""

    def initialize_from_bucket(self) -> None:
        pass


# Not registered: tfds.load cannot make one, as it has no questions to give it.
class QuestionBuilder(FileReaderBuilder, skip_registration=True):
    """Writes questions, in their order, one ArrayRecord file a split.

    The records are those that TFDS would write, and it reads them; its own writer takes some
    hundred microseconds a record, half a minute for 200,000 of them.
    """

    name = _NAME
    VERSION = tfds.core.Version(_VERSION)

    def __init__(
        self, *, questions: Mapping[str, Callable[[], Iterable[Question]]] | None = None, **kwargs
    ):
        self._questions = questions or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "id": text(),
                "question": text(),
                "golden_answers": tfds.features.Sequence(text()),
                "metadata": text(),  # JSON
            }
        )
        return _LocalInfo(builder=self, features=features, disable_shuffling=True)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        infos = []
        for split, questions in self._questions.items():
            template = self._get_filename_template(split)
            path = Path(template.sharded_filepath(shard_index=0, num_shards=1))
            index = write_records(questions(), path)
            index.save(_index_path(path.parent, split))
            infos.append(
                SplitInfo(
                    name=split,
                    shard_lengths=[len(index.bytes_Q)],
                    num_bytes=path.stat().st_size,
                    filename_template=template,
                )
            )
        self.info.set_splits(SplitDict(infos))

    # TFDS prints both messages to stdout, whatever the log level.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


# One question file of a split, or several.
Files = AnyFile | Sequence[AnyFile]


def prepare_questions(files: Mapping[str, Files], data_dir: str | os.PathLike) -> str:
    """Makes a TFDS data set of question files, unless one of the same content is there, undamaged.

    Safe to repeat and to interrupt: a data set is moved into place when it is complete. Questions
    are read one at a time. Turns off TFDS's progress bars for the rest of the process.

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
    folder = _folder(data_dir, fingerprint)
    fault = _fault(folder) if folder.exists() else "it is not there"
    if fault:
        if folder.exists():
            notice(f"{folder}: {fault}; the questions are prepared again.")
        _build(files, data_dir, fingerprint)
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
        ValueError: there is no such split, or a file of the data set is damaged or gone.
    """
    data_dir = Path(data_dir)
    fingerprint = fingerprint or _read_current(data_dir)
    folder = _folder(data_dir, fingerprint)
    if not folder.exists():
        raise FileNotFoundError(
            f"{data_dir} holds no questions of fingerprint {fingerprint}; "
            "prepare them with prepare_questions."
        )
    if fault := _fault(folder):
        raise ValueError(f"{folder}: {fault}; prepare the questions again (prepare_questions).")
    with _quiet_tfds():
        builder = _new_builder(data_dir, fingerprint)
        if split not in builder.info.splits:
            raise ValueError(
                f"no split {split!r} in {data_dir}; there are {', '.join(builder.info.splits)}."
            )
        (path,) = builder.info.splits[split].filepaths
    index = QuestionIndex.load(_index_path(folder, split))
    return PreparedQuestions(Records(Path(path)), index)


def _given(files: Files) -> list[QuestionFile]:
    several = [files] if isinstance(files, (str, os.PathLike, QuestionFile)) else files
    return [
        file if isinstance(file, QuestionFile) else QuestionFile(Path(file)) for file in several
    ]


def _check_splits(files: Mapping[str, Files]) -> None:
    if not files:
        raise ValueError("No question files given; name at least one split and its file.")
    for split, given in files.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", split) or split.lower() == "all":
            raise ValueError(
                f"split name {split!r}: use a letter, then letters, digits and underscores; "
                "'all' is reserved."
            )
        for file in _given(given):
            if not file.path.is_file():
                raise FileNotFoundError(
                    f"{file.path}: no such file (questions of split {split!r})."
                )


def _fingerprint(files: Mapping[str, Files]) -> str:
    digest = hashlib.sha256()
    for split in sorted(files):
        for file in _given(files[split]):
            # A file given by its path is known by its content alone, wherever it lies.
            called = f" {file.source}:{file.split}" if file.source else ""
            digest.update(f"{split} {sha256_of(file.path)}{called}\n".encode())
    return digest.hexdigest()[:24]


def _folder(data_dir: Path, fingerprint: str) -> Path:
    return data_dir / _NAME / fingerprint / _VERSION


def _index_path(folder: Path, split: str) -> Path:
    return folder / f"index-{split}.npz"


def _new_builder(data_dir: Path, fingerprint: str, **kwargs: Any) -> QuestionBuilder:
    config = tfds.core.BuilderConfig(name=fingerprint, description="Questions and their answers.")
    return QuestionBuilder(data_dir=data_dir, config=config, **kwargs)


def _fault(folder: Path) -> str:
    """What is wrong with a prepared data set; "" if nothing is."""
    path = folder / _CHECKSUMS_FILE
    try:
        checksums = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{_CHECKSUMS_FILE} is missing, so it is not known to be complete"
    except (OSError, ValueError) as error:
        return f"{_CHECKSUMS_FILE} is damaged ({error})"
    if not isinstance(checksums, dict):
        return f"{_CHECKSUMS_FILE} is damaged"
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != checksum:
            return f"{name} does not have its checksum"
    return ""


def _build(files: Mapping[str, Files], data_dir: Path, fingerprint: str) -> None:
    """Writes the data set in a folder of its own, which then takes the place of any other."""
    was_there = data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".questions.", dir=data_dir))
    try:
        _write(files, temporary, fingerprint)
        if _fingerprint(files) != fingerprint:
            raise ValueError("A question file changed while it was read; run again.")
        _move(_folder(temporary, fingerprint), _folder(data_dir, fingerprint), temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not was_there and not any(data_dir.iterdir()):
            data_dir.rmdir()


def _write(files: Mapping[str, Files], data_dir: Path, fingerprint: str) -> None:
    """Writes the data set and its checksums."""

    def reader(given: Files) -> Callable[[], Iterator[Question]]:
        return lambda: scan_questions(*_given(given))

    questions = {split: reader(given) for split, given in files.items()}
    tfds.disable_progress_bar()
    with _quiet_tfds():
        builder = _new_builder(data_dir, fingerprint, questions=questions)
        builder.download_and_prepare(download_dir=data_dir / "downloads")
    folder = _folder(data_dir, fingerprint)
    checksums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / _CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=1), encoding="utf-8")


def _move(made: Path, folder: Path, temporary: Path) -> None:
    """Puts a finished data set where it belongs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and _fault(folder):
        os.replace(folder, temporary / "damaged")
    try:
        os.replace(made, folder)
    except OSError:
        # Another process of the same run may have moved the same content into place first.
        if not folder.exists() or _fault(folder):
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
    write_whole(path, content)


def _read_current(data_dir: Path) -> str:
    path = data_dir / _NAME / _CURRENT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{data_dir} holds no prepared questions; prepare them with prepare_questions."
        )
    return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
