"""Text at a terminal while it comes: labels at the left, lines broken between words."""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from sr1_jax.terminal import printable

# Columns of labels, and of the gap behind them.
_LABEL = 8
_GAP = 2
INDENT = _LABEL + _GAP


class Columns:
    """Writes into a column beside labels. Control characters are left out, white space is made
    single spaces.

    A word is written once it is whole, since only then it is known on which line it stands.

    Args:
        console: that is written to.
        width: of a line, in cells.
    """

    def __init__(self, console: Console, width: int):
        self._console, self._width = console, max(width, INDENT + 10)
        self._column = 0  # of the cursor
        self._word, self._style = "", ""
        self._spaced = False  # whether white space came before the word

    @property
    def column_width(self) -> int:
        """Cells of a line beside the labels."""
        return self._width - INDENT

    def label(self, text: str, style: str) -> None:
        """Begins a line, and what follows in it."""
        self.end_line()
        self._put(f"{printable(text):>{_LABEL}}", style)
        self._put(" " * _GAP, "")
        if self._column > INDENT:  # a long label has a line of its own
            self._break()
        self._spaced = False

    def write(self, text: str, style: str) -> None:
        """Goes on with text that may end within a word."""
        for part in re.findall(r"\s+|\S+", printable(text)):
            if part.isspace() or style != self._style:
                self._end_word()
            if part.isspace():
                self._spaced = True
                continue
            self._word, self._style = self._word + part, style
            # A word that no line holds, as text without spaces is, does not wait for its end.
            while cell_len(self._word) > self.column_width:
                first, *rest = chop_cells(self._word, self.column_width)
                self._word = first
                self._end_word()
                self._word = "".join(rest)

    def lines(self, text: str, style: str, *, indent: int = 0, most: int | None = None) -> None:
        """Whole lines: a paragraph, from behind a label or on a line of its own.

        Args:
            text: of the paragraph.
            style: of it.
            indent: further cells at the left.
            most: lines; of a longer paragraph an ellipsis says that it goes on. None: all.
        """
        self._end_word()
        if self._column > INDENT:
            self.end_line()
        plain = Text(" ".join(printable(text).split()))
        width = self.column_width - indent
        lines = [line.plain.rstrip() for line in plain.wrap(self._console, width - 2)]
        if most is not None and len(lines) > most:
            lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
        for line in lines:
            self._put(" " * (INDENT + indent - self._column), "")
            self._put(line, style)
            self.end_line()

    def end_line(self) -> None:
        """Ends the line, unless it is empty."""
        self._end_word()
        if self._column:
            self._console.out("")
        self._column, self._spaced = 0, False

    def _end_word(self) -> None:
        if not self._word:
            return
        word, self._word = self._word, ""
        spaced, self._spaced = self._spaced and self._column > INDENT, False
        if self._column + spaced + cell_len(word) > self._width:
            self._break()
        elif spaced:
            self._put(" ", "")
        elif not self._column:
            self._put(" " * INDENT, "")
        self._put(word, self._style)

    def _break(self) -> None:
        self._console.out("")
        self._column = 0
        self._put(" " * INDENT, "")

    def _put(self, text: str, style: str) -> None:
        self._console.out(text, style=style or None, end="", highlight=False)
        self._column += cell_len(text)
