"""What may be printed: text of models, files and users, made harmless for a terminal."""

from __future__ import annotations

import re

# C0 and C1 control characters but for line feed and tab: among them ESC and its one-byte form CSI,
# which begin the sequences that clear the screen, set the title or fill the clipboard. And the
# characters that turn the direction of writing, so that what is read is not what is there.
CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"


def printable(text: str) -> str:
    """`text` without the characters by which it could control a terminal.

    What follows an escape character stays, as plain text: the reader sees that something was
    there. For people only: files keep every character.
    """
    return re.sub(CONTROL, "", text)


def one_line(text: str) -> str:
    """`text` as `printable` leaves it, its white space made single spaces: for messages."""
    return " ".join(printable(text).split())
