"""Examples to imitate: from files, from questions with their answers, or from a task's traces.

A file has a JSON object a line. {"ids": [int], "mask": [0 or 1]} are exact tokens, as rejection
sampling writes them. {"spans": [[0, text], [1, text], …]} is text, mask 1 on what a policy wrote;
so a line of a trajectory log is an example too. Other keys are ignored.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from sr1_jax.data.jsonl import read_jsonl
from sr1_jax.data.questions import Question
from sr1_jax.evaluation.methods import prompt_template, rollout_config
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import sha256_of
from sr1_jax.protocol.prompts import PromptTemplate
from sr1_jax.protocol.tags import ANSWER, close_tag, open_tag
from sr1_jax.training.phases import ANSWERS, Phase, phases_of
from sr1_jax.training.supervised import Example
from sr1_jax.training.task import Task


def phase_examples(
    config: ml_collections.ConfigDict, task: Task, phase: Phase, tokenizer: Tokenizer, seed: int
) -> list[Example]:
    """What a phase imitates.

    Args:
        config: of the run.
        task: of the run: its traces, or its training questions.
        phase: says which.
        tokenizer: of the policy.
        seed: of what is drawn.

    Raises:
        ValueError: a fault in a file, with its line; or fewer examples than phase.traces.
    """
    if not phase.examples:
        return list(task.supervised.examples(phase, tokenizer, seed))
    if phase.examples == ANSWERS:
        template = prompt_template(config, config.method, tokenizer)
        questions = (task.train[index] for index in range(len(task.train)))
        found = answer_examples(questions, template, tokenizer)
    else:
        found = read_examples(phase.files, tokenizer)
    if phase.traces > len(found):
        raise ValueError(
            f"warm_start.phases, {phase.name!r}: traces={phase.traces}, but there are only "
            f"{len(found)} examples."
        )
    if phase.traces:
        found = random.Random(f"examples {seed}").sample(found, phase.traces)
    return found


def check_examples(config: ml_collections.ConfigDict) -> None:
    """Refuses phases whose examples cannot be there, before anything is loaded.

    Raises:
        ValueError: a file is missing; or answers are to be imitated by a method that calls tools.
    """
    for phase in phases_of(config.warm_start.phases):
        for path in phase.files:
            if not path.is_file():
                raise ValueError(
                    f"warm_start.phases, {phase.name!r}: examples={phase.examples}: there is no "
                    f"file {path}."
                )
        if phase.examples == ANSWERS and rollout_config(config, config.method).max_searches:
            raise ValueError(
                f"warm_start.phases, {phase.name!r}: examples={ANSWERS!r} show a policy that "
                f"answers at once, but method={config.method!r} calls tools: set method=direct."
            )


def examples_sha256(config: ml_collections.ConfigDict) -> dict[str, str]:
    """A hash of the files of examples of each phase that has any, by its name."""
    return {
        phase.name: hashlib.sha256("".join(map(sha256_of, phase.files)).encode()).hexdigest()
        for phase in phases_of(config.warm_start.phases)
        if phase.files
    }


def read_examples(paths: Sequence[Path], tokenizer: Tokenizer) -> list[Example]:
    """The examples of files, in their order.

    Args:
        paths: JSON lines, may be gzipped.
        tokenizer: encodes spans, and says which ids there are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming file and line: a line that is no example, ids that the tokenizer does not
            know, an example in which nothing is learned; or a file without a line.
    """
    examples = []
    for path in paths:
        before = len(examples)
        for number, row in read_jsonl(path):
            examples.append(_example(row, tokenizer, f"{path}:{number}"))
        if len(examples) == before:
            raise ValueError(f"{path}: no examples; the file is empty.")
    return examples


def answer_examples(
    questions: Iterable[Question], template: PromptTemplate, tokenizer: Tokenizer
) -> list[Example]:
    """Each question's prompt, and its first golden answer in the tag of answers.

    Args:
        questions: to be learned.
        template: of a method that answers at once; without a place for passages.
        tokenizer: of the policy.
    """
    examples = []
    for question in questions:
        prompt = template.render(tokenizer, question.question)
        # With spaces inside, so that an answer has the tokens it has in text.
        text = f"{open_tag(ANSWER)} {question.golden_answers[0].strip()} {close_tag(ANSWER)}"
        ids = tokenizer.encode(text)
        examples.append(Example(prompt + ids, [0] * len(prompt) + [1] * len(ids)))
    return examples


def _example(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Example:
    if "ids" in row:
        example = _from_ids(row, tokenizer, where)
    elif "spans" in row:
        example = _from_spans(row["spans"], tokenizer, where)
    else:
        raise ValueError(f"{where}: an example needs ids and mask, or spans.")
    if not any(example.mask[1:]):
        raise ValueError(
            f"{where}: its mask is 0 throughout, so there is nothing to learn; remove it."
        )
    return example


def _from_ids(row: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> Example:
    ids, mask = row["ids"], row.get("mask")
    if not isinstance(ids, list) or not isinstance(mask, list) or len(ids) != len(mask):
        raise ValueError(f"{where}: ids and mask must be lists of one length.")
    known = tokenizer.vocab_size
    for number in ids:
        if type(number) is not int or not 0 <= number < known:
            raise ValueError(
                f"{where}: id {number!r} is none of the tokenizer's 0 to {known - 1}: was the file "
                "made with another model?"
            )
    if any(value not in (0, 1) for value in mask):
        raise ValueError(f"{where}: mask must hold 0 and 1 alone.")
    return Example(list(ids), [int(value) for value in mask])


def _from_spans(spans: Any, tokenizer: Tokenizer, where: str) -> Example:
    """Special tokens mean themselves in what the policy wrote and in the prompt, which is the
    text before that; anywhere else they are plain text."""
    good = isinstance(spans, list) and all(
        isinstance(span, list) and len(span) == 2 and span[0] in (0, 1) and isinstance(span[1], str)
        for span in spans
    )
    if not good:
        raise ValueError(f"{where}: spans must be a list of [0 or 1, text].")
    ids: list[int] = []
    mask: list[int] = []
    # Neighbours with one mask are one text: where it is cut must not decide its tokens.
    for value, group in itertools.groupby(spans, key=lambda span: span[0]):
        text = "".join(span[1] for span in group)
        trusted = value == 1 or not ids
        new = tokenizer.encode_trusted(text) if trusted else tokenizer.encode(text)
        ids += new
        mask += [value] * len(new)
    return Example(ids, mask)
