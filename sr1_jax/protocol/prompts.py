"""Prompt templates: our own text with places for the question and, where used, passages.

A prompt in which the policy reads what a search found has a place for the query too.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.chat_sandbox import render_chat

_TEMPLATES = Path(__file__).parent / "templates"
# What a template may have places for, and must.
_FIELDS, _NEEDED = ("question", "information"), ("question",)
_READER_FIELDS, _READER_NEEDED = ("question", "query", "information"), ("query", "information")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template, split at its fields.

    Attributes:
        name: by which it was loaded, for messages.
        parts: text, field name, text, field name, …, text.
        complete: whether it has its own beginning of text, if the model is used to one.
        fields: that its text may have places for; other names in braces are plain text.
    """

    name: str
    parts: tuple[str, ...]
    complete: bool = False
    fields: tuple[str, ...] = _FIELDS

    @property
    def wants_information(self) -> bool:
        """Whether passages belong into the prompt."""
        return "information" in self.parts[1::2]

    def render(
        self,
        tokenizer: Tokenizer,
        question: str,
        information: list[int] | None = None,
        *,
        query: str = "",
    ) -> list[int]:
        """Prompt ids, with the beginning of text that the model is used to.

        They are the ids of the whole text, not of its parts one after the other. Special tokens
        in the template mean themselves, those in question and query are plain text.

        Args:
            tokenizer: of the policy.
            question: the user's words.
            information: ids of an observation, for templates with `{information}`.
            query: what was searched for, for templates with `{query}`.

        Raises:
            ValueError: the template asks for information and none was given.
        """
        if self.wants_information and information is None:
            raise ValueError(
                f"Template {self.name} has {{information}}, but no passages were given."
            )
        values = {"question": question, "query": query}
        ids: list[int] = []
        for piece in _compiled(self.parts, tokenizer):
            if piece is _INFORMATION:
                ids += information
            else:
                ids += piece.ids
                ids += tokenizer.encode(piece.text(values)) if piece.texts else []
        prefix = [] if self.complete else tokenizer.prefix_ids
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def sure_to_fit_bytes(self, tokenizer: Tokenizer, most: int, information: int) -> int:
        """Length of a question up to which its prompt surely has at most so many ids.

        A byte-level tokenizer makes at most one id of a byte, once the text is in its normal form.

        Args:
            tokenizer: of the policy.
            most: ids of the prompt.
            information: ids of an observation.

        Returns:
            Bytes of UTF-8; -1 where the tokenizer says nothing of lengths, or nothing is sure.
        """
        growth = tokenizer.most_ids_a_byte
        if growth is None:
            return -1
        left, questions = most - len(tokenizer.prefix_ids), 0
        for piece in _compiled(self.parts, tokenizer):
            if piece is _INFORMATION:
                left -= information
                continue
            # One more, for a space that some tokenizers put in front.
            own = sum(len(text.encode()) for text in piece.texts) + 1 if piece.texts else 0
            left -= len(piece.ids) + growth * own
            questions += max(len(piece.texts) - 1, 0)
        return max(left // (growth * questions), -1) if questions else -1


class _Run(NamedTuple):
    """A part of a prompt between ids that are given: `ids`, then `texts` with the values of
    `fields` between them."""

    ids: list[int]
    texts: tuple[str, ...]
    fields: tuple[str, ...] = ()

    def text(self, values: Mapping[str, str]) -> str:
        filled = (values[field] + text for field, text in zip(self.fields, self.texts[1:]))
        return self.texts[0] + "".join(filled)


_INFORMATION = object()


@functools.lru_cache(maxsize=32)
def _compiled(parts: tuple[str, ...], tokenizer: Tokenizer) -> tuple[_Run | object, ...]:
    """A template's parts as runs, in which all that depends on no field is encoded.

    A tokenizer splits text into words first, so what stands next to a question or a query has to be
    encoded with it. Only special tokens, which mean themselves in the template, and the ids of an
    observation end a run.
    """
    pieces: list[_Run | object] = []
    texts, fields = [""], []

    def close() -> None:
        ids, rest = tokenizer.settled(texts[0]) if fields else ([], texts[0])
        if fields:
            pieces.append(_Run(ids, (rest, *texts[1:]), tuple(fields)))
        elif rest:
            pieces.append(_Run(tokenizer.encode(rest), ()))
        texts[:], fields[:] = [""], []

    for index, part in enumerate(parts):
        if index % 2 == 0:
            for piece in tokenizer.split_added(part):
                if isinstance(piece, str):
                    texts[-1] += piece
                else:
                    close()
                    pieces.append(_Run([piece], ()))
        elif part != "information":
            fields.append(part)
            texts.append("")
        else:
            close()
            pieces.append(_INFORMATION)
    close()
    return tuple(pieces)


def in_chat(template: PromptTemplate, tokenizer: Tokenizer) -> PromptTemplate:
    """The template as what a user says to a chat model, the answer being next.

    The model's own chat template is rendered once, in a sandbox, around the text of ours; questions
    and passages are put in afterwards, as plain text, so nothing in them can end the user's turn.

    Args:
        template: of the prompt.
        tokenizer: with the chat template.

    Raises:
        ValueError: the model has no chat template, or that fails, drops a field of ours or takes
            too long.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The model's tokenizer has no chat template, so it cannot be asked in one."
        )
    text = "".join(
        part if index % 2 == 0 else f"{{{part}}}" for index, part in enumerate(template.parts)
    )
    eos_token = tokenizer.token(tokenizer.eos_ids[0]) if tokenizer.eos_ids else ""
    rendered = render_chat(tokenizer.chat_template, text, tokenizer.bos_token or "", eos_token)
    parts = _split(rendered, template.fields)
    if parts[1::2] != template.parts[1::2]:
        raise ValueError(
            f"The model's chat template kept the fields {parts[1::2]} of template "
            f"{template.name}, which has {template.parts[1::2]}."
        )
    return PromptTemplate(f"{template.name} in chat", parts, True, template.fields)


def template_for(
    name_or_path: str, tokenizer: Tokenizer, chat: bool | str, *, reader: bool = False
) -> PromptTemplate:
    """The template that prompts of a model are rendered from.

    Args:
        name_or_path: see `load_template`.
        tokenizer: of the policy.
        chat: whether the prompt is a user's message in the model's own chat template; "auto":
            where its tokenizer has one, as the original trains.
        reader: see `load_template`.

    Raises:
        ValueError: as `load_template` and `in_chat`.
    """
    template = load_template(name_or_path, reader=reader)
    wanted = bool(tokenizer.chat_template) if chat == "auto" else chat
    return in_chat(template, tokenizer) if wanted else template


def load_template(name_or_path: str, *, reader: bool = False) -> PromptTemplate:
    """Loads a template by the name of a shipped one or by a file's path.

    Args:
        name_or_path: of the template.
        reader: whether passages are read in the prompt: it then needs `{query}` and
            `{information}`.

    Raises:
        ValueError: no such template, or one without a field that it needs: `{question}`, unless it
            is a reader's.
    """
    path = Path(name_or_path)
    shipped = _TEMPLATES / f"{name_or_path}.txt"
    if path.name == name_or_path and shipped.is_file():
        path = shipped
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in _TEMPLATES.glob("*.txt")))
        raise ValueError(
            f"No prompt template {name_or_path!r}: give a file's path or one of {names}."
        )
    # The last line break of a file belongs to the editor, not to the prompt.
    fields, needed = (_READER_FIELDS, _READER_NEEDED) if reader else (_FIELDS, _NEEDED)
    parts = _split(path.read_text(encoding="utf-8").removesuffix("\n"), fields)
    for field in needed:
        if field not in parts[1::2]:
            raise ValueError(f"Prompt template {path} has no {{{field}}}.")
    return PromptTemplate(str(name_or_path), parts, fields=fields)


def _split(text: str, fields: Sequence[str]) -> tuple[str, ...]:
    """A template's text: text, field name, text, …, text."""
    return tuple(re.split(rf"\{{({'|'.join(fields)})\}}", text))
