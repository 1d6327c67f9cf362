"""A corpus without the passages that answer questions: what a policy then still answers, it knew.

A passage is withheld if

- its title is one of metadata["supporting_titles"] of a question, or
- it holds a golden answer of a question, in whole words of the normalised texts, and besides it at
  least two stems of that question's words: "1997" alone makes no passage an answer to all that
  happened then. Answers such as "yes" and "no" stand in nearly every text and do not count.

What is left may still tell an answer in other words. What goes may be more than what tells it.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sr1_jax.data.questions import Question
from sr1_jax.retrieval.corpus import no_passages, parse_passage
from sr1_jax.retrieval.corpus_files import check_new_corpus, read_chunks, writing_corpus
from sr1_jax.retrieval.words import english_words
from sr1_jax.rewards.matching import normalize_answer
from sr1_jax.rewards.retrieval import open_answers, plain_title, supporting_titles

_SHARED_STEMS = 2


@dataclass
class Report:
    """What was withheld.

    Attributes:
        corpus: its path.
        questions: whose passages go.
        passages: the corpus held.
        by_title: withheld for their titles.
        by_answer: of the others, withheld for an answer.
    """

    corpus: str
    questions: int
    passages: int = 0
    by_title: int = 0
    by_answer: int = 0

    @property
    def left(self) -> int:
        """Passages that are written."""
        return self.passages - self.by_title - self.by_answer

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Wanted(NamedTuple):
    """An answer that passages must not give."""

    words: tuple[str, ...]
    asked: frozenset[str]  # stems of the question that are not in the answer
    needed: int  # of these, for a passage to count


class Gold:
    """Tells the passages that answer some of many questions.

    Args:
        questions: with, perhaps, metadata.supporting_titles.

    Raises:
        ValueError: supporting titles are no list of strings; names the question.
    """

    def __init__(self, questions: Sequence[Question]):
        self._split = english_words().split
        self._titles = {
            plain_title(title) for question in questions for title in supporting_titles(question)
        }
        # By its first word, so that each passage is read once whatever the number of questions.
        self._starting: dict[str, list[_Wanted]] = collections.defaultdict(list)
        for question in questions:
            stems = set(self._split(question.question))
            for answer in sorted(open_answers(question)):
                asked = frozenset(stems - set(self._split(answer)))
                words = tuple(answer.split())
                needed = min(_SHARED_STEMS, len(asked))
                self._starting[words[0]].append(_Wanted(words, asked, needed))

    def has_title(self, title: str) -> bool:
        """Whether it is a supporting title of a question."""
        return plain_title(title) in self._titles

    def tells(self, title: str, text: str) -> bool:
        """Whether a passage holds an answer, and enough of its question's words."""
        whole = f"{title} {text}"
        words = normalize_answer(whole).split()
        stems: set[str] | None = None
        for place, word in enumerate(words):
            for wanted in self._starting.get(word, ()):
                if tuple(words[place : place + len(wanted.words)]) != wanted.words:
                    continue
                stems = set(self._split(whole)) if stems is None else stems
                if len(stems & wanted.asked) >= wanted.needed:
                    return True
        return False


def withhold(
    corpus: Path,
    questions: Sequence[Question],
    out: Path,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> Report:
    """Writes a corpus less the passages that answer questions.

    Args:
        corpus: see `read_corpus`; it is left as it is.
        questions: see `Gold`.
        out: a `.jsonl` or `.jsonl.gz` file that is not there yet; its folder is made if need be.
        progress: told the share of the corpus that is read.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: `out` is there, or is no JSON-lines file by its name; a fault in the corpus,
            with its line or row; supporting titles are no list; no passage would be left.
    """
    check_new_corpus(out)
    gold, report = Gold(questions), Report(str(corpus), len(questions))
    with writing_corpus(out) as file:
        for line in _left(corpus, gold, report, progress):
            file.write(line.encode("utf-8"))
        if not report.passages:
            raise no_passages(corpus)
        if not report.left:
            raise ValueError(f"{corpus}: every passage answers a question; none would be left.")
    return report


def _left(
    corpus: Path, gold: Gold, report: Report, progress: Callable[[float], None]
) -> Iterator[str]:
    """The lines of the passages that stay."""
    for chunk in read_chunks(corpus):
        for number, row in chunk.rows():
            passage_id, title, text = parse_passage(row, chunk.where(number))
            report.passages += 1
            if gold.has_title(title):
                report.by_title += 1
            elif gold.tells(title, text):
                report.by_answer += 1
            else:
                kept = {"id": passage_id, "title": title, "text": text}
                yield json.dumps(kept, ensure_ascii=False) + "\n"
        progress(chunk.share)
