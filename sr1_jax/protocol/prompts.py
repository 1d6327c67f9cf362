"""Prompt templates: our own text with places for the question and, where used, passages."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jinja2
import jinja2.sandbox

from sr1_jax.models.tokenizer import Tokenizer

_TEMPLATES = Path(__file__).parent / "templates"
_FIELD = re.compile(r"\{(question|information)\}")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template cut at its fields: text, field name, text, field name, …, text.

    `complete` says that nothing belongs in front of it.
    """

    name: str
    parts: tuple[str, ...]
    complete: bool = False

    @property
    def wants_information(self) -> bool:
        """Whether passages belong into the prompt."""
        return "information" in self.parts[1::2]

    def render(
        self, tokenizer: Tokenizer, question: str, information: list[int] | None = None
    ) -> list[int]:
        """Prompt ids, with the beginning of text that the model is used to. Special tokens in the
        template mean themselves, those in the question are plain text.

        Args:
            tokenizer: of the policy.
            question: the user's words.
            information: ids of an observation, for templates with `{information}`.

        Raises:
            ValueError: the template asks for information and none was given.
        """
        if self.wants_information and information is None:
            raise ValueError(
                f"Template {self.name} has {{information}}, but no passages were given."
            )
        ids: list[int] = []
        for index, part in enumerate(self.parts):
            if index % 2 == 0:
                ids += tokenizer.encode_trusted(part) if part else []
            else:
                ids += tokenizer.encode(question) if part == "question" else information
        prefix = [] if self.complete else tokenizer.prefix_ids
        return ids if ids[: len(prefix)] == prefix else prefix + ids


def in_chat(template: PromptTemplate, tokenizer: Tokenizer) -> PromptTemplate:
    """The template as what a user says to a chat model, the answer being next.

    The model's own chat template is rendered once, in a sandbox, around the text of ours; questions
    and passages are put in afterwards, as plain text, so nothing in them can end the user's turn.

    Args:
        template: of the prompt.
        tokenizer: with the chat template.

    Raises:
        ValueError: the model has no chat template, or that fails or drops a field of ours.
    """
    if not tokenizer.chat_template:
        raise ValueError("The model has no chat template; set rollout.chat=False.")
    # As transformers renders them, but without today's date: a prompt must not change overnight.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    text = "".join(
        part if index % 2 == 0 else f"{{{part}}}" for index, part in enumerate(template.parts)
    )
    try:
        rendered = environment.from_string(tokenizer.chat_template).render(
            messages=[{"role": "user", "content": text}],
            add_generation_prompt=True,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.token(tokenizer.eos_ids[0]) if tokenizer.eos_ids else "",
            tools=None,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"The model's chat template failed: {error}") from error
    parts = tuple(_FIELD.split(rendered))
    if parts[1::2] != template.parts[1::2]:
        raise ValueError(
            f"The model's chat template kept the fields {parts[1::2]} of template "
            f"{template.name}, which has {template.parts[1::2]}."
        )
    return PromptTemplate(f"{template.name} in chat", parts, complete=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def load_template(name_or_path: str) -> PromptTemplate:
    """Loads a template by the name of a shipped one or by a file's path.

    Raises:
        ValueError: no such template, or one without `{question}`.
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
    parts = tuple(_FIELD.split(path.read_text(encoding="utf-8").removesuffix("\n")))
    if "question" not in parts[1::2]:
        raise ValueError(f"Prompt template {path} has no {{question}}.")
    return PromptTemplate(str(name_or_path), parts)
