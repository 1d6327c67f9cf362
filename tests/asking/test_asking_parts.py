"""A policy's text divided at its tags, however it comes."""

from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.asking.parts import Parts

NAMES = ("think", "answer", "search")


def divided(*texts):
    """[part, text] of each part, of text that comes in the given pieces."""
    parts, found = Parts(NAMES), []
    pieces = [piece for text in texts for piece in parts.add(text)]
    for part, text, begins in [*pieces, *parts.end()]:
        if begins:
            found.append([part, ""])
        assert found[-1][0] == part
        found[-1][1] += text
    return found


def test_parts_by_hand():
    text = "<think>a < b</think>\n<search>q</search>"
    assert divided(text) == [["think", "a < b"], ["", "\n"], ["search", "q"]]
    assert divided("<think>a</think><think>b") == [["think", "a"], ["think", "b"]]
    assert divided("<think>a<search>b</search>c") == [["think", "a"], ["search", "b"], ["", "c"]]
    assert divided("") == []


def test_what_is_no_tag_there_is_text():
    assert divided("x</think>y</search") == [["", "x</think>y</search"]]
    assert divided("<search>a</think></searc") == [["search", "a</think></searc"]]
    assert divided("<information>z</information><<think>a") == [
        ["", "<information>z</information><"],
        ["think", "a"],
    ]


def test_a_part_that_is_open_ends_with_the_segment():
    parts = Parts(NAMES)
    assert [p.part for p in [*parts.add("<think>a"), *parts.end(), *parts.add("b")]] == [
        "think", "think", "",
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["<", "/", ">", "think", "search", "</search>", "<answer>", " x"])))
def test_pieces_do_not_matter_and_nothing_is_lost(pieces):
    text = "".join(pieces)
    whole = divided(text)
    assert divided(*text) == divided(*pieces) == whole
    kept = "".join(part_text for _, part_text in whole)
    # Only tags are left out: the rest is there, in order.
    left = iter(text)
    assert all(char in left for char in kept)
    if not any(f"<{slash}{name}>" in text for name in NAMES for slash in ("", "/")):
        assert kept == text
