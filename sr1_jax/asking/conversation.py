"""Questions from a command line, or from somebody at a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TextIO

from sr1_jax.asking.answer import as_data
from sr1_jax.asking.asker import Asker
from sr1_jax.asking.view import View
from sr1_jax.models.tokenizer import Tokenizer


def answer_all(asker: Asker, questions: Sequence[str], view: View) -> None:
    """Answers questions one after the other at a terminal.

    Raises:
        ValueError, RuntimeError: as `Asker.ask`.
    """
    for question in questions:
        view.begin(question, repeat=True)
        view.end(asker.ask(question, view.watch))


def write_all(asker: Asker, questions: Sequence[str], tokenizer: Tokenizer, file: TextIO) -> None:
    """Writes one JSON object a question, each as soon as it is known. All of it is ASCII, so that
    nothing in it controls a terminal.

    Raises:
        ValueError, RuntimeError: as `Asker.ask`.
    """
    for question in questions:
        answered = asker.ask(question, lambda *_: None)
        print(json.dumps(as_data(answered, tokenizer)), file=file, flush=True)


def converse(asker: Asker, view: View, read: Callable[[], str]) -> None:
    """Answers what somebody types. Ctrl-C breaks off an answer, or clears what was typed; Ctrl-D
    ends.

    Args:
        asker: that answers.
        view: that shows.
        read: the next question; raises EOFError at the end.
    """
    while True:
        try:
            question = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        if not question:
            continue
        view.begin(question, repeat=False)
        try:
            view.end(asker.ask(question, view.watch))
        except KeyboardInterrupt:
            view.stop()
        except (ValueError, RuntimeError) as error:
            view.complain(error)
