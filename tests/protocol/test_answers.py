"""Answer extraction and the format check, with a grammar-based generator as oracle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr1_jax.protocol.answers import extract_answer, extract_queries, is_well_formed
from sr1_jax.protocol.tags import SEARCH_TAGS, close_tag, open_tag

STOP_TAGS, TAG_NAMES = SEARCH_TAGS.stop_tags, SEARCH_TAGS.names

GOOD = (
    "<think>I need the capital.</think>\n<search>capital of France</search>\n\n"
    "<information>Doc 1(Title: Paris) Paris is …</information>\n"
    "<think>Paris.</think> <answer> Paris </answer>\n"
)


def test_tags():
    assert TAG_NAMES == ("think", "search", "information", "answer")
    assert open_tag("search") == "<search>"
    assert STOP_TAGS == ("</search>", "</answer>")
    assert close_tag("think") == "</think>"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (GOOD, "Paris"),
        ("<answer>one</answer> no, <answer>\ntwo </answer>", "two"),
        ("<answer>one</answer> <answer>cut off", "one"),  # last closed, not last opened
        ("<answer>outer <answer>inner</answer>", "inner"),
        ("<answer>one</answer> stray</answer>", "one"),
        ("stray</answer><answer>one</answer>", "one"),
        ("<answer></answer>", ""),
        ("<answer>a < b </b></answer>", "a < b </b>"),
        ("<think><answer>early</answer></think>", "early"),
        ("<Answer>Paris</Answer>", None),
        ("< answer>Paris</answer>", None),
        ("<answer>Paris", None),
        ("</answer>Paris<answer>", None),
        ("", None),
    ],
)
def test_extract_answer(response, expected):
    assert extract_answer(response) == expected


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ("<think>x</think><search> capital of France </search>", ["capital of France"]),
        ("<search>first\n\n  second \r\n\t\n</search>", ["first", "second"]),
        ("<search>one</search><search>two</search>", ["two"]),
        ("<search>one</search><search>two", ["one"]),
        ("<search>outer<search>inner</search>", ["inner"]),
        ("<search> \n </search>", []),
        ("<search>one</search><search></search>", []),
        ("<answer>Paris</answer>", []),
        ("", []),
    ],
)
def test_extract_queries(segment, expected):
    assert extract_queries(segment) == expected


@pytest.mark.parametrize(
    "response",
    [
        GOOD,
        "<think>t</think><answer>a</answer>",
        " \n<think>t</think>\t<answer>a</answer>\n ",
        "<think>t</think><search>q</search><information></information>"
        "<think>t</think><search>q</search><information> i </information>"
        "<think>1 < 2, <b>bold</b></think><answer>a</answer>",
    ],
)
def test_well_formed(response):
    assert is_well_formed(response) is True


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Paris",
        "<answer>a</answer>",  # no thought
        "<think>t</think>",  # no answer
        "<think>t</think><answer>a</answer><think>t</think>",
        "<think>t</think><answer>a</answer><answer>a</answer>",
        "<think>t</think><answer>a</answer> bye",
        "so <think>t</think><answer>a</answer>",
        "<think>t</think> so <answer>a</answer>",
        "<think>t</think><think>t</think><answer>a</answer>",
        "<think> \n</think><answer>a</answer>",
        "<think>t</think><answer> </answer>",
        "<think>t</think><search></search><information>i</information><think>t</think><answer>a</answer>",
        "<think>t</think><search>q</search><information>i</information><answer>a</answer>",
        "<think>t</think><search>q</search><think>t</think><answer>a</answer>",
        "<think>t</think><information>i</information><think>t</think><answer>a</answer>",
        "<search>q</search><information>i</information><think>t</think><answer>a</answer>",
        "<think>t<answer>x</answer></think><answer>a</answer>",
        "<think>t</think><answer>a <search>q</answer>",
        "<think>t</think><answer>a",
        "<think>t</think><answer>a</answer",
        "<think>t</answer><answer>a</think>",
        "</think><think>t</think><answer>a</answer>",
        "</think>t</think><answer>a</answer>",
        "<think>t<think><answer>a</answer>",
        "<think>t</think><answer>a</answer></answer>",
        "<think>t</think><answer>a</answer><think>",
    ],
)
def test_ill_formed(response):
    assert is_well_formed(response) is False


def test_every_prefix_of_a_good_response_is_ill_formed():
    body = GOOD.rstrip()
    assert is_well_formed(body)
    assert not any(is_well_formed(body[:length]) for length in range(len(body)))


# No "<": content can never become a tag by itself.
CONTENT = st.text(alphabet="ab /\n>.", min_size=1, max_size=6).filter(str.strip)
SPACE = st.text(alphabet=" \n\t", max_size=2)


def block(name, content):
    return open_tag(name) + content + close_tag(name)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(0, 3))
def test_the_grammar_is_accepted_and_a_missing_part_is_not(data, searches):
    names = ["think", "search", "information"] * searches + ["think", "answer"]
    contents = [data.draw(CONTENT) for _ in names]
    parts = [block(name, content) for name, content in zip(names, contents)]
    gaps = [data.draw(SPACE) for _ in range(len(parts) + 1)]
    response = gaps[0] + "".join(part + gap for part, gap in zip(parts, gaps[1:]))
    assert is_well_formed(response)
    assert extract_answer(response) == contents[-1].strip()
    lines = contents[1].split("\n") if searches else []
    first_turn = "".join(parts[:2]) if searches else ""
    assert extract_queries(first_turn) == [line.strip() for line in lines if line.strip()]

    dropped = data.draw(st.integers(0, len(parts) - 1))
    assert not is_well_formed("".join(parts[:dropped] + parts[dropped + 1 :]))
    inserted = data.draw(
        st.sampled_from([tag(n) for n in TAG_NAMES for tag in (open_tag, close_tag)])
    )
    at = data.draw(st.integers(0, len(parts)))
    assert not is_well_formed("".join(parts[:at]) + inserted + "".join(parts[at:]))


def test_large_hostile_input_is_read():
    # Quadratic or exponential matching would not come back from these in a test's lifetime.
    many = 200_000
    assert extract_answer("<answer>" * many) is None
    assert extract_answer("<answer>" * many + "x</answer>") == "x"
    assert extract_queries("<search>" * many + "</search" * many) == []
    assert is_well_formed("<think>" + "<" * many + "</think><answer>a</answer>") is True
    assert is_well_formed(" " * many + "<think>t</think>" + " " * many + "x") is False
