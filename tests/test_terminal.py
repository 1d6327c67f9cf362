"""Text that is safe to print."""

import pytest

from sr1_jax.terminal import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07title", "]0;ownedtitle"),  # OSC 0: the window's title
        ("\x1b]52;c;cm0gLXJm\x1b\\x", "]52;c;cm0gLXJm\\x"),  # OSC 52: the clipboard
        ("\x1b[2J\x1b[Hgone", "[2J[Hgone"),  # clear screen
        ("\x9b2Jgone\x9d0;x\x9c", "2Jgone0;x"),  # the same by one-byte introducers
        ("real\rfake\x08\x7f\x00", "realfake"),
        ("a\u202egnp.exe\u2066\u200f", "agnp.exe"),
        ("line\n\tnext é 日本 🙂", "line\n\tnext é 日本 🙂"),
    ],
)
def test_what_controls_a_terminal_is_left_out(text, shown):
    assert printable(text) == shown


def test_no_control_character_is_left_but_line_feed_and_tab():
    every = "".join(map(chr, range(0x100)))
    kept = [c for c in printable(every) if not c.isprintable() and c not in "\u00a0\u00ad"]
    assert kept == ["\t", "\n"]


def test_a_message_is_one_line():
    assert one_line("a\x1b[2J\n  b\tc ") == "a[2J b c"
