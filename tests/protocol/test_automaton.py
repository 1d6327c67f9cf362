"""The tag automaton against a search of the text, byte by byte."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sr1_jax.protocol.automaton import TagAutomaton, build_automaton
from sr1_jax.protocol.tags import SEARCH_TAGS

STOP_TAGS = SEARCH_TAGS.stop_tags


def first_stop(ids, token_bytes, eos_ids, stops):
    """(what stops the text or None, index of the token that does), by naive search."""
    text = b""
    for index, token in enumerate(ids):
        if token in eos_ids:
            return TagAutomaton.END_OF_TEXT, index
        for byte in token_bytes[token]:
            text += bytes([byte])
            ending = [stop for stop in stops if text.endswith(stop.encode())]
            if ending:
                return max(ending, key=lambda stop: len(stop.encode())), index
    return None, None


def check(ids, token_bytes, eos_ids, stops):
    automaton = build_automaton(token_bytes, eos_ids, stops)
    want, at = first_stop(ids, token_bytes, eos_ids, stops)
    state = 0
    for index, token in enumerate(ids):
        state = automaton.run([token], state)
        found = automaton.stop(state)
        assert found == (want if at is not None and index >= at else None)
        assert (state >= automaton.first_final) == (found is not None)
    assert automaton.run(ids) == state


# Two letters only: stops that overlap, contain and continue one another, and themselves.
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@settings(deadline=None, max_examples=300)
@given(
    STOPS,
    st.lists(st.text("abc", max_size=6).map(str.encode), min_size=1, max_size=8),
    st.data(),
)
def test_overlapping_stops_over_random_vocabularies(stops, token_bytes, data):
    token = st.integers(0, len(token_bytes) - 1)
    eos_ids = data.draw(st.sets(token, max_size=2))
    check(data.draw(st.lists(token, max_size=30)), token_bytes, eos_ids, stops)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_tags_cut_anywhere(data):
    """A vocabulary of the very pieces that a text with tags is cut into."""
    parts = st.sampled_from([*STOP_TAGS, "<search>", "</", "<", "</sear", "answer>", "é", ">"])
    text = "".join(data.draw(st.lists(parts, min_size=1, max_size=8))).encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)) | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]
    token_bytes = [b"", *dict.fromkeys(pieces)]  # token 0 ends the text
    ids = [token_bytes.index(piece) for piece in pieces]
    if data.draw(st.booleans()):
        ids.insert(data.draw(st.integers(0, len(ids))), 0)
    check(ids, token_bytes, {0}, STOP_TAGS)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20), st.sampled_from(STOP_TAGS), st.text(max_size=20))
def test_tags_in_text_of_a_real_tokenizer(small_tokenizer, before, tag, after):
    assume(not any(stop in before for stop in STOP_TAGS))
    table = small_tokenizer.token_bytes
    automaton = build_automaton(table, small_tokenizer.eos_ids, STOP_TAGS)
    ids = small_tokenizer.encode(before + tag + after)
    assert automaton.stop(automaton.run(ids)) == tag
    assert automaton.stop(automaton.run(small_tokenizer.encode(before + tag[:-1]))) is None


@pytest.mark.parametrize(
    ("tokens", "want", "at"),
    [
        ([b"</search>"], "</search>", 0),
        ([b"x</sea", b"", b"rch>y"], "</search>", 2),  # starts and ends inside tokens
        ([b"</search", b" >", b"</answer>"], "</answer>", 2),
        ([b"<</search>"], "</search>", 0),  # a false start right before
        ([b"</</search>"], "</search>", 0),
        ([b"</answer></search>"], "</answer>", 0),  # two in one token: the first
        ([b"</sea", b"</search>"], "</search>", 1),
        ([b"</SEARCH>", b"< /search>", b"<search>"], None, None),
    ],
)
def test_examples(tokens, want, at):
    assert first_stop(range(len(tokens)), tokens, (), STOP_TAGS) == (want, at)
    check(range(len(tokens)), tokens, (), STOP_TAGS)


def test_the_longer_of_two_stops_that_end_at_one_byte():
    automaton = build_automaton([b"x", b"a", b"b"], [], ["b", "ab"])
    assert automaton.stop(automaton.run([0, 2])) == "b"
    assert automaton.stop(automaton.run([0, 1, 2])) == "ab"


def test_a_stop_that_begins_another_hides_it():
    automaton = build_automaton([b"a", b"b", b"c", b"abc"], [], ["ab", "abc"])
    assert automaton.stop(automaton.run([0, 1, 2])) == "ab"
    assert automaton.stop(automaton.run([3])) == "ab"


def test_end_of_text_counts_even_in_the_middle_of_a_tag_and_with_bytes_of_its_own():
    token_bytes = [b"</sear", b"ch>", b""]
    automaton = build_automaton(token_bytes, [1, 2], STOP_TAGS)
    assert automaton.stop(automaton.run([0, 2])) == TagAutomaton.END_OF_TEXT
    assert automaton.stop(automaton.run([0, 1])) == TagAutomaton.END_OF_TEXT
    assert automaton.stop(automaton.run([0, 0])) is None


def test_a_token_without_bytes_changes_nothing_and_finals_absorb():
    token_bytes = [b"</search>", b"</answer>", b"", b"</se", b"arch>"]
    automaton = build_automaton(token_bytes, [], STOP_TAGS)
    states = np.arange(len(automaton.next_state))
    np.testing.assert_array_equal(automaton.next_state[:, 2], states)
    finals = states[automaton.first_final :]
    assert len(finals) == len(STOP_TAGS) + 1
    assert (automaton.next_state[finals] == finals[:, None]).all()
    assert automaton.stop(automaton.run([3, 2, 4])) == "</search>"
    assert automaton.next_state.dtype == np.int32


def test_only_end_of_text_without_stop_strings():
    automaton = build_automaton([b"a", b""], [1], [])
    assert automaton.stop(automaton.run([0, 0])) is None
    assert automaton.stop(automaton.run([0, 1])) == TagAutomaton.END_OF_TEXT


def test_stop_strings_of_several_bytes_a_character():
    pieces = [bytes([byte]) for byte in "日本".encode()]
    automaton = build_automaton(pieces, [], ["日本"])
    assert automaton.stop(automaton.run(range(6))) == "日本"
    assert automaton.stop(automaton.run(range(5))) is None


@pytest.mark.parametrize("stops", [[""], ["a", ""], ["a", "b", "a"]])
def test_empty_and_repeated_stops_are_refused(stops):
    with pytest.raises(ValueError, match="non-empty and distinct"):
        build_automaton([b"a"], [], stops)


@pytest.mark.parametrize(
    "rest", ["", "x", "></", "</answer", "</answer>", "</answer> <", "</ans</"]
)
def test_a_stop_that_is_let_pass(rest):
    """Behind it the search goes on as from a new beginning, in the midst of a token too."""
    tokens = [b"</think>" + rest.encode(), b"answer>", b"er>", b">", b"</think>"]
    automaton = build_automaton(tokens, [], ("</think>", "</answer>"))
    stopped = automaton.run([0])
    assert automaton.stop(stopped) == "</think>"
    state = automaton.after(rest.encode())
    for token, text in enumerate(tokens):
        want, _ = first_stop([0], [rest.encode() + text], [], ("</think>", "</answer>"))
        assert automaton.stop(automaton.run([token], state)) == want
