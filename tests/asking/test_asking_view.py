"""What stands at a terminal: words, columns, colours."""

import io
import re

import numpy as np
import pytest
from rich.cells import cell_len

from sr1_jax.asking import Answered, View, make_console
from sr1_jax.asking.columns import Columns
from sr1_jax.data.questions import Question
from sr1_jax.environment import SearchRecord
from sr1_jax.environment.search_tool import Reading
from sr1_jax.environment.watched import Began, Called, Shown, Wrote
from sr1_jax.retrieval.base import Passage

ASKED = Question("ask:Who?", "Who?", ("x",))
LONG = "Bob was elected mayor of the town by a large majority of all who voted there. " * 4
PASSAGES = [Passage("p1", "Bob", LONG, 2.0), Passage("p2", "", "Lyon is a town.", 1.0)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def show(make_trajectory):
    """Function that shows events and returns what was written."""

    def show(*events, file=None, whole=False, repeat=True, **fields):
        file = file or io.StringIO()
        view = View(make_console(file), ["search", "calculate"], whole_passages=whole)
        view.begin("Who?", repeat=repeat)
        for event in events:
            view.watch(ASKED, 0, event)
        trajectory = make_trajectory(
            **{"ids": np.arange(9), "mask": np.array([0] * 4 + [1] * 5), "status": "answered",
               "answer": "Bob"} | fields
        )  # fmt: skip
        view.end(Answered("Who?", trajectory, 2.345, 0.5))
        return file.getvalue()

    return show


FOUND = Shown("\n<information>\nx\n</information>\n", "search", SearchRecord(["mayor"], [PASSAGES]))
EVENTS = (
    Began([]),
    Wrote("<thi"),
    Wrote("nk>I need the may"),
    Wrote("or.</think>\n<search>may"),
    Wrote("or</search>"),
    Called("search", "mayor"),
    FOUND,
    Wrote("<answer>Bob</answer>"),
)
FIELDS = {"searches": ["mayor"], "passages": [PASSAGES]}


def test_an_answer(show):
    assert show(*EVENTS, **FIELDS) == (
        "question  Who?\n"
        "   think  I need the mayor.\n"
        "  search  mayor\n"
        "          1. Bob\n"
        "             Bob was elected mayor of the town by a large majority of all who\n"
        "             voted there. Bob was elected mayor of the town by a large …\n"
        "          2. p2\n"
        "             Lyon is a town.\n"
        "  answer  Bob\n"
        "          1 search · 2 passages · 5 tokens · 2.3 s\n"
    )


def test_whole_passages(show):
    words = show(*EVENTS, whole=True, **FIELDS).split()
    assert " ".join(LONG.split()) in " ".join(words) and "…" not in words


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_words_are_broken_at_80_columns_however_they_come(show, step):
    text = f"<think>{LONG}日本語{'字' * 90} {'x' * 200}</think><answer>Bob</answer>"
    pieces = [Wrote(text[i : i + step]) for i in range(0, len(text), step)]
    lines = show(*pieces).splitlines()
    assert max(map(cell_len, lines)) <= 80
    thought = [line[10:] for line in lines[1:-2]]
    assert "".join("".join(thought).split()) == "".join(text[7 : text.index("</think>")].split())
    words = " ".join(thought).split()
    assert " ".join(words).startswith(" ".join(LONG.split()))  # no word was broken


def test_a_narrow_terminal(show, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(cell_len, show(*EVENTS, **FIELDS).splitlines())) <= 40


def test_colours_at_a_terminal_only(show, monkeypatch):
    coloured = show(*EVENTS, file=Terminal(), **FIELDS)
    assert "\x1b[1;32mBob" in coloured and "\x1b[36mmayor" in coloured
    plain = show(*EVENTS, **FIELDS)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(*EVENTS, file=Terminal(), **FIELDS) == plain


def test_nobody_controls_the_terminal(show):
    evil = "\x1b[2J\x9b1m\u202e\x07"
    passage = Passage("p", f"{evil}title", f"{evil}text", 1.0)
    record = SearchRecord([f"{evil}q"], [[passage]], Reading("", f"{evil}read", 3))
    written = show(
        Began([passage]),
        Wrote(f"<think>{evil}thought</think>{evil}outside<search>{evil}q</search>"),
        Called("search", f"{evil}q"),
        Shown("x", "search", record),
        Shown(f"<result>{evil}told</result>", "calculate"),
        answer=f"{evil}answer",
    )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", written)
    for word in ("title", "text", "thought", "outside", "read", "told", "answer"):
        assert f"{word}\n" in written


def test_what_has_not_the_form_is_shown_too(show):
    told = Shown("\nMy action is not correct.\n")
    written = show(Wrote("Well, <b>"), told, Wrote("<answer>Bob"), status="truncated", answer=None)
    assert written.splitlines()[1:] == [
        "          Well, <b>",
        "          My action is not correct.",
        "  answer  Bob",
        "  answer  none: its budget of tokens ran out",
        "          0 searches · 0 passages · 5 tokens · 2.3 s",
    ]


def test_an_observation_that_left_no_room(show):
    nothing = Shown("", "search", SearchRecord(["mayor"], [[]]))
    written = show(*EVENTS[:6], nothing, status="truncated", answer=None)
    assert "nothing found\n          There is no room left to read this.\n" in written


def test_passages_of_the_prompt_and_what_was_read(show):
    record = SearchRecord(["mayor"], [PASSAGES[1:]], Reading("<answer>Lyon</answer>", "Lyon", 4))
    written = show(Began(PASSAGES[1:]), Shown("x", "search", record), repeat=False)
    assert written.startswith("   found  1. p2\n")
    assert "   reads  Lyon\n" in written


def test_each_of_several_queries_has_its_passages(show):
    record = SearchRecord(["town", "mayor"], [PASSAGES[1:], []])
    written = show(Shown("x", "search", record))
    assert "          town\n          1. p2\n" in written
    assert "          mayor\n          nothing found\n" in written


def test_other_tools(show):
    written = show(
        Wrote("<calculate>6*7</calculate>"),
        Called("calculate", "6*7"),
        Shown("\n<result>\n42\n</result>\n", "calculate", 42),
    )
    # A label that does not fit has a line of its own.
    assert "calculate  \n          6*7\n  result  42\n" in written


def test_interrupted_and_failed():
    file = io.StringIO()
    view = View(make_console(file), ["search"])
    view.begin("Who?", repeat=False)
    view.watch(ASKED, 0, Wrote("<think>I ne"))
    view.stop()
    view.complain(RuntimeError("search failed\x1b[2J"))
    assert file.getvalue() == ("   think  I ne\n          stopped\n   error  search failed[2J\n")


def test_a_word_is_written_as_soon_as_it_is_whole():
    file = io.StringIO()
    columns = Columns(make_console(file), 40)
    columns.write("one tw", "")
    assert file.getvalue() == " " * 10 + "one"
    columns.write("o three", "")
    assert file.getvalue() == " " * 10 + "one two"
    columns.end_line()
    assert file.getvalue() == " " * 10 + "one two three\n"
