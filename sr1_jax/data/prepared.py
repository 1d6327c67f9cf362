"""Questions as records on disk: how one is written and read, and what is known of all at once."""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from sr1_jax.data.questions import Question

# ArrayRecord compresses groups of records. What is read at random wants groups of one, and in one
# question there is nothing to compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READ_AT_ONCE = 2048
_READ_BYTES = 32768
# What JSON has no form for, such as a date in a parquet file, is kept as text.
_to_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class QuestionIndex(NamedTuple):
    """What is known of all questions of a split without reading them.

    Attributes:
        bytes_Q: int32 [Q], length of each question's text in UTF-8.
        source_Q: int32 [Q], the number of each question's source.
        sources: names of the sources, in the order in which they first occur.
    """

    bytes_Q: np.ndarray
    source_Q: np.ndarray
    sources: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes one `.npz` file."""
        names = np.array(self.sources, dtype=np.str_)
        np.savez(path, bytes_Q=self.bytes_Q, source_Q=self.source_Q, sources=names)

    @classmethod
    def load(cls, path: Path) -> QuestionIndex:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            names = tuple(map(str, arrays["sources"]))
            return cls(arrays["bytes_Q"], arrays["source_Q"], names)


def write_records(questions: Iterable[Question], path: Path) -> QuestionIndex:
    """Writes an ArrayRecord file of `tf.train.Example`s, one a question, in their order."""
    lengths: list[int] = []
    numbers: list[int] = []
    number_of: dict[str, int] = {}
    encode = _Encoder().encode
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for question in questions:
            writer.write(encode(question))
            lengths.append(len(question.question.encode()))
            numbers.append(number_of.setdefault(question.source, len(number_of)))
    finally:
        writer.close()
    return QuestionIndex(np.array(lengths, np.int32), np.array(numbers, np.int32), tuple(number_of))


class _Encoder:
    """Serialises questions, all by way of one message: to make one takes longer than to fill it."""

    def __init__(self):
        self._example = tf_example_pb2.Example()
        feature = self._example.features.feature
        self._values = {
            name: feature[name].bytes_list.value
            for name in ("id", "question", "golden_answers", "metadata")
        }
        for name in ("id", "question", "metadata"):
            self._values[name].append(b"")

    def encode(self, question: Question) -> bytes:
        """A `tf.train.Example` of four features, as TFDS writes it."""
        values = self._values
        values["id"][0] = question.id.encode()
        values["question"][0] = question.question.encode()
        values["golden_answers"][:] = [answer.encode() for answer in question.golden_answers]
        # JSON: its keys differ from source to source.
        values["metadata"][0] = _to_json(question.metadata).encode()
        return self._example.SerializeToString()


class Records:
    """The records of one ArrayRecord file, random access; safe in threads.

    TFDS's data source starts threads for every read of several records, and the memory that each
    of these takes from the system stays with the process.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._reader = array_record_module.ArrayRecordReader(
            str(path), "readahead_buffer_size:0", file_reader_buffer_size=_READ_BYTES
        )

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Several records at once."""
        with self._lock:
            return self._reader.read(list(numbers)) if len(numbers) else []


class PreparedQuestions:
    """Random access to the questions of one split, in file order; safe in threads.

    Args:
        records: serialised examples.
        index: of the same questions.

    Attributes:
        index: of the questions.
    """

    def __init__(self, records: Records, index: QuestionIndex):
        self._records = records
        self.index = index

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Question:
        return self.read([range(len(self))[operator.index(index)]])[0]

    def __iter__(self) -> Iterator[Question]:
        """In file order, read some thousands at a time."""
        for start in range(0, len(self), _READ_AT_ONCE):
            yield from self.read(range(start, min(start + _READ_AT_ONCE, len(self))))

    def read(self, numbers: Sequence[int]) -> list[Question]:
        """Several questions at once, which takes a fifth of the time of one after the other."""
        records = self._records.read(numbers)
        return [self._decode(record, number) for record, number in zip(records, numbers)]

    def _decode(self, record: bytes, number: int) -> Question:
        feature = tf_example_pb2.Example.FromString(record).features.feature
        return Question(
            id=feature["id"].bytes_list.value[0].decode(),
            question=feature["question"].bytes_list.value[0].decode(),
            golden_answers=tuple(a.decode() for a in feature["golden_answers"].bytes_list.value),
            metadata=json.loads(feature["metadata"].bytes_list.value[0]),
            source=self.index.sources[self.index.source_Q[number]],
        )


class Subset:
    """Some of the questions of a source, in the given order.

    Args:
        source: random access to questions.
        numbers_Q: int, which of them.

    Attributes:
        numbers_Q: as given.
        index: of these questions.
    """

    def __init__(self, source: Any, numbers_Q: Sequence[int] | np.ndarray):
        self._source = source
        self.numbers_Q = np.asarray(numbers_Q, np.int64)
        whole = index_of(source)
        self.index = QuestionIndex(
            whole.bytes_Q[self.numbers_Q], whole.source_Q[self.numbers_Q], whole.sources
        )

    def __len__(self) -> int:
        return len(self.numbers_Q)

    def __getitem__(self, index: int) -> Question:
        return self._source[int(self.numbers_Q[operator.index(index)])]

    def read(self, numbers: Sequence[int]) -> list[Question]:
        """Several questions at once."""
        return read(self._source, [int(self.numbers_Q[number]) for number in numbers])


def read(source: Any, numbers: Sequence[int]) -> list[Question]:
    """Questions of a source by their numbers, at once where the source can."""
    if isinstance(source, PreparedQuestions | Subset):
        return source.read(numbers)
    return [source[number] for number in numbers]


def index_of(source: Any) -> QuestionIndex:
    """What is known of all questions of a source; of one without an index they are read."""
    index = getattr(source, "index", None)
    if isinstance(index, QuestionIndex):  # lists have a method of this name
        return index
    number_of: dict[str, int] = {}
    questions = [source[number] for number in range(len(source))]
    numbers = [number_of.setdefault(question.source, len(number_of)) for question in questions]
    lengths = [len(question.question.encode()) for question in questions]
    return QuestionIndex(np.array(lengths, np.int32), np.array(numbers, np.int32), tuple(number_of))
