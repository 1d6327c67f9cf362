"""What a policy writes, divided at its tags while it comes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from sr1_jax.protocol.tags import close_tag, open_tag


class Piece(NamedTuple):
    """A piece of a part.

    Attributes:
        part: name of the tag that it stands in; "" outside of all.
        text: without the tags; may be empty at the beginning of a part.
        begins: whether it is the first of its part.
    """

    part: str
    text: str
    begins: bool


class Parts:
    """Divides text that comes piece by piece: `<think>`, `<search>`, `<answer>`, what is outside.

    Any opening tag begins a part, the closing tag of a part ends it. A tag that does neither is
    text like any other, so that nothing is lost of what has not the form. What may become a tag
    is held back until that is known.

    Args:
        names: of the tags.
    """

    def __init__(self, names: Collection[str]):
        self._part_of = {open_tag(name): name for name in names}
        self._part, self._begins, self._held = "", True, ""

    def add(self, text: str) -> Iterator[Piece]:
        """The pieces that are sure after some more text."""
        text, self._held = self._held + text, ""
        while text:
            before, mark, rest = text.partition("<")
            if before:
                yield self._piece(before)
            text = mark + rest
            marks = [*self._part_of, close_tag(self._part)] if self._part else [*self._part_of]
            found = next((tag for tag in marks if text.startswith(tag)), None)
            if found is not None:
                text = text.removeprefix(found)
                self._part, self._begins = self._part_of.get(found, ""), True
                if self._part:
                    yield self._piece("")
            elif any(tag.startswith(text) for tag in marks):
                self._held, text = text, ""
            else:
                yield self._piece("<")
                text = text[1:]

    def end(self) -> Iterator[Piece]:
        """What was held back; a part that is still open ends here, and the next is outside."""
        held, self._held = self._held, ""
        if held:
            yield self._piece(held)
        self._part, self._begins = "", True

    def _piece(self, text: str) -> Piece:
        begins, self._begins = self._begins, False
        return Piece(self._part, text, begins)
