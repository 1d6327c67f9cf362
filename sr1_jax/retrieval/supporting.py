"""Complete corpora: the paragraphs that multi-hop questions were written from, added to a corpus.

A dump of Wikipedia of another day lacks some of the paragraphs that HotpotQA, 2WikiMultihopQA and
MuSiQue expect to be found. Added to the corpus they are worth 2 to 6 points of exact match, more
than what algorithms differ by (arXiv 2605.27881). A paragraph is added if no passage of the corpus
has its title and its text, white space aside.

Questions come as their authors publish them, or as Hugging Face or FlashRAG do, in JSON, JSON
lines or parquet. A row, or its `metadata`, holds one of:

    paragraphs: [{"title", "paragraph_text", "is_supporting"}]                       MuSiQue
    context: [[title, [sentence]]], supporting_facts: [[title, sentence]]            as published
    context: {"title": [], "sentences" or "content": [[]]}, supporting_facts: {"title": []}

or context and supporting_facts as strings of JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sr1_jax.retrieval.corpus import no_passages, parse_passage
from sr1_jax.retrieval.corpus_files import (
    Chunk,
    check_new_corpus,
    read_chunks,
    read_rows,
    writing_corpus,
)


@dataclass
class FileReport:
    """What a file of questions brought.

    Attributes:
        file: its path.
        questions: it holds.
        supporting: paragraphs that support a question, each as often as it does.
        without_text: titles named as supporting of which no paragraph is given.
        distinct: paragraphs that no file before had.
        in_corpus: of these, that the corpus had already.
        added: of these, that are new.
    """

    file: str
    questions: int = 0
    supporting: int = 0
    without_text: int = 0
    distinct: int = 0
    in_corpus: int = 0
    added: int = 0


@dataclass
class Report:
    """What was added to a corpus.

    Attributes:
        corpus: its path.
        passages: it held.
        added: paragraphs that are new.
        files: of questions.
    """

    corpus: str
    passages: int = 0
    added: int = 0
    files: list[FileReport] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def complete_corpus(
    corpus: Path,
    questions: Sequence[Path],
    out: Path,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> Report:
    """Writes a corpus with the supporting paragraphs of questions behind its own passages.

    Doing it again to the result adds nothing. `out` appears when it is complete.

    Args:
        corpus: see `read_corpus`; it is left as it is.
        questions: files in the forms above.
        out: a `.jsonl` or `.jsonl.gz` file that is not there yet; its folder is made if need be.
        progress: told the share of the corpus that is copied.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: `out` is there, or is no JSON-lines file by its name; a fault in a file, with
            its line or row.
    """
    check_new_corpus(out)
    chunks = read_chunks(corpus)
    report = Report(str(corpus))
    file_of: dict[tuple[str, str], FileReport] = {}
    for path in questions:
        report.files.append(_read_questions(path, file_of))
    missing = dict(file_of)
    with writing_corpus(out) as file:
        for chunk in chunks:
            report.passages += _copy(chunk, file, missing)
            progress(chunk.share)
        if not report.passages:
            raise no_passages(corpus)
        for key, of_file in missing.items():
            of_file.added += 1
            file.write(_line(_new_id(key), *key))
    report.added = len(missing)
    return report


def _copy(
    chunk: Chunk,
    file: BinaryIO,
    missing: dict[tuple[str, str], FileReport],
) -> int:
    """Copies passages; takes out of `missing` what is among them. Returns their number."""
    count = 0
    for number, row in chunk.rows():
        passage_id, title, text = parse_passage(row, chunk.where(number))
        key = _key(title, text)
        if key in missing:
            missing.pop(key).in_corpus += 1
        if not isinstance(chunk.content[0], bytes):
            file.write(_line(passage_id, title, text))
        count += 1
    if isinstance(chunk.content[0], bytes):
        # As they are, with what other keys they have.
        file.writelines(line if line.endswith(b"\n") else line + b"\n" for line in chunk.content)
    return count


def supporting_paragraphs(row: dict[str, Any], where: str) -> tuple[list[tuple[str, str]], int]:
    """The paragraphs that support a question.

    Args:
        row: of a file of questions.
        where: file and line or row, for messages.

    Returns:
        ((title, text) of each, how many titles are named of which there is no text).

    Raises:
        ValueError: the row is of none of the forms above.
    """
    metadata = row.get("metadata")
    holders = [part for part in (row, metadata) if isinstance(part, dict)]
    holder = next((part for part in holders if {"paragraphs", "context"} & part.keys()), None)
    try:
        if holder is None:
            raise KeyError("neither paragraphs nor context")
        if holder.get("paragraphs"):
            paragraphs = holder["paragraphs"]
            return [(p["title"], p["paragraph_text"]) for p in paragraphs if p["is_supporting"]], 0
        return _of_context(_parsed(holder["context"]), _parsed(holder["supporting_facts"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{where}: no supporting paragraphs are found ({error}); a question needs paragraphs "
            "with is_supporting, or context and supporting_facts."
        ) from error


def _of_context(context: Any, facts: Any) -> tuple[list[tuple[str, str]], int]:
    if isinstance(context, dict):
        texts = context["sentences"] if "sentences" in context else context["content"]
        context = list(zip(context["title"], texts))
    titles = facts["title"] if isinstance(facts, dict) else [fact[0] for fact in facts]
    wanted = dict.fromkeys(titles)
    found = [
        (title, text if isinstance(text, str) else " ".join(text))
        for title, text in context
        if title in wanted
    ]
    return found, len(wanted.keys() - {title for title, _ in found})


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _read_questions(path: Path, file_of: dict[tuple[str, str], FileReport]) -> FileReport:
    """Adds to `file_of` the paragraphs that are in no earlier file."""
    report = FileReport(str(path))
    for where, row in read_rows(path):
        paragraphs, without_text = supporting_paragraphs(row, where)
        report.questions += 1
        report.supporting += len(paragraphs)
        report.without_text += without_text
        for title, text in paragraphs:
            key = _key(title, text)
            if key not in file_of and key[1]:
                file_of[key] = report
                report.distinct += 1
    if not report.questions:
        raise ValueError(f"{path}: no questions; the file is empty.")
    return report


def _key(title: str, text: str) -> tuple[str, str]:
    return " ".join(title.split()), " ".join(text.split())


def _new_id(key: tuple[str, str]) -> str:
    """The same for the same paragraph in every corpus."""
    return f"supporting-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}"


def _line(passage_id: str, title: str, text: str) -> bytes:
    if "\n" in title:
        row = {"id": passage_id, "title": title, "text": text}
    else:
        row = {"id": passage_id, "contents": f'"{title}"\n{text}'}
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
