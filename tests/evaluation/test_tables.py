"""Tables of scores on narrow and wide terminals."""

import io

import pytest
from rich.console import Console

from sr1_jax.evaluation import tables
from sr1_jax.evaluation.scores import SCORES, Score
from sr1_jax.evaluation.tables import Column, Row, markdown, print_scores, score_columns

SCORED = {one.key: 0.008 for one in SCORES} | {"em_1_hop": 0.5, "em_2_hop": 1.0, "searches": 12.0}


def printed(rows, columns, *, width=80, labels=("run",), title="Scores"):
    console = Console(file=io.StringIO(), width=width)
    print_scores(console, title, labels, rows, columns)
    return console.file.getvalue().splitlines()


def test_columns_are_those_of_the_one_list():
    keys = [column.key for column in score_columns(SCORED)]
    assert keys[:3] == ["em", "em_1_hop", "em_2_hop"]
    assert keys[3:] == [one.key for one in SCORES[1:] if one.heading]
    assert score_columns({"x/em_1_hop": 1}, prefix="x/", above="greedy", brief=True) == [
        Column("x/em", "greedy\nEM"),
        Column("x/em_1_hop", "greedy\n1-hop"),
        Column("x/searches", "greedy\nsearch", 2),
    ]


def test_a_new_score_is_one_line_and_in_every_table(monkeypatch):
    new = Score("calls", lambda t: 1.0, "calls", 1, brief=True)
    monkeypatch.setattr(tables, "SCORES", (*SCORES, new))
    for brief in (False, True):
        assert score_columns(SCORED, brief=brief)[-1] == Column("calls", "calls", 1)


def test_no_number_is_broken_at_80_columns():
    """0.008 was printed as 0.00 over 8, and a heading as respo/nse/token/s."""
    row = Row(("search_o1", "step 500", "sampled", "51713"), SCORED | {"response_tokens": 1234.5})
    labels = ("method", "policy", "decode", "n")
    lines = printed([row], score_columns(SCORED), labels=labels)
    assert max(map(len, lines)) <= 80
    cells = next(line.split() for line in lines if "search_o1" in line)
    shown = "0.008 0.500 1.000 0.008 0.008 12.00"
    assert cells == ["search_o1", "step", "500", "sampled", "51713", *shown.split()]
    assert "A wider terminal also shows" in "".join(lines)


def test_what_does_not_fit_is_left_out_from_the_end_and_named():
    columns = [Column("em", "EM"), Column("f1", "F1"), Column("searches", "all\nsearches", 2)]
    row = Row(("demo",), SCORED)
    wide = printed([row], columns, width=60)
    assert "all" in wide[1] and "searches" in wide[2] and "wider" not in "".join(wide)
    narrow = printed([row], columns, width=20)
    assert "0.008" in "".join(narrow) and "12.00" not in "".join(narrow)
    assert "also shows all searches." in " ".join(" ".join(narrow).split())


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_lines_are_never_longer_than_the_terminal(width):
    rows = [Row(("runs/demo_with_a_long_name", "x"), SCORED), Row(("日本", "y"), {"em": 1.0})]
    lines = printed(rows, score_columns(SCORED), width=width, labels=("run", "other"))
    assert max(map(len, lines)) <= width
    assert sum("0.008" in line for line in lines) >= 1


def test_control_characters_and_markup_are_harmless():
    rows = [Row(("\x1b]0;x\x07[red]run",), {"em": 1.0})]
    text = "\n".join(printed(rows, [Column("em", "EM")], title="of \x1b[2J[b]x.jsonl"))
    assert "\x1b" not in text and "\x07" not in text
    assert "]0;x[red]run" in text and "of [2J[b]x.jsonl" in text


def test_markdown_has_every_column():
    rows = [Row(("demo", "a\nb"), {"em": 0.5}), Row(("base", ""), {"em": 0.25, "f1": 1.0})]
    columns = [Column("em", "greedy\nEM"), Column("f1", "F1", 1)]
    assert markdown(("run", "what"), rows, columns) == (
        "| run | what | greedy EM | F1 |\n"
        "| --- | --- | --- | --- |\n"
        "| demo | a b | 0.500 |  |\n"
        "| base |  | 0.250 | 1.0 |\n"
    )
