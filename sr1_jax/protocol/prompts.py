"""Prompt templates: our own text with places for the question and, where used, passages."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sr1_jax.models.tokenizer import Tokenizer

_TEMPLATES = Path(__file__).parent / "templates"
_FIELD = re.compile(r"\{(question|information)\}")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template cut at its fields: text, field name, text, field name, …, text."""

    name: str
    parts: tuple[str, ...]

    @property
    def wants_information(self) -> bool:
        """Whether passages belong into the prompt."""
        return "information" in self.parts[1::2]

    def render(
        self, tokenizer: Tokenizer, question: str, information: list[int] | None = None
    ) -> list[int]:
        """Prompt ids. Special tokens in the template mean themselves, those in the question
        are plain text.

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
        return ids


def load_template(name_or_path: str) -> PromptTemplate:
    """Loads a template by the name of a shipped one or by a file's path.

    Raises:
        ValueError: no such template, or one without `{question}`.
    """
    path = _TEMPLATES / f"{name_or_path}.txt"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in _TEMPLATES.glob("*.txt")))
        raise ValueError(
            f"No prompt template {name_or_path!r}: give a file's path or one of {shipped}."
        )
    # The last line break of a file belongs to the editor, not to the prompt.
    parts = tuple(_FIELD.split(path.read_text(encoding="utf-8").removesuffix("\n")))
    if "question" not in parts[1::2]:
        raise ValueError(f"Prompt template {path} has no {{question}}.")
    return PromptTemplate(str(name_or_path), parts)
