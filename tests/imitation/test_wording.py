"""Key words, names, titles."""

import pytest

from sr1_jax.imitation.wording import (
    bare_title,
    key_words,
    names,
    names_in,
    with_key_words,
    without_function_words,
)


def test_key_words_keep_their_spelling_and_order():
    text = "When did Lothair Ii's mother, the queen, die (in 851)?"
    assert key_words(text) == ["Lothair", "Ii", "mother", "queen", "die", "851"]
    assert without_function_words("who was it?") == "who was it?"
    assert without_function_words("who was\n it?") == "who was it?"


def test_with_key_words_adds_what_is_not_there():
    text = "Which bridges did the engineer of Brindle Bridge draw?"
    # bridges and Bridge have one stem.
    assert with_key_words("Brindle Bridge", text) == "Brindle Bridge engineer draw"
    assert with_key_words("Marta Quill", text, without="Brindle Bridge") == (
        "Marta Quill engineer draw"
    )
    assert with_key_words("Marta Quill", "who is it") == "Marta Quill"


@pytest.mark.parametrize(
    ("title", "bare"),
    [("Amico (film)", "Amico"), ("8 Mile", "8 Mile"), ("(film)", "(film)"), ("A (b) c", "A (b) c")],
)
def test_bare_title(title, bare):
    assert bare_title(title) == bare


def test_names_wants_whole_words_in_any_case():
    assert names("was it the DOCTOR of St Pauli?", "The Doctor of St. Pauli")
    assert names("Ed Wood's film", "Ed Wood")
    assert not names("Edward Woods", "Ed Wood")
    assert not names("anything", "...")


def test_names_in():
    text = "The film was by Ines Calder and Tom Rusk of Port Vell. In 1961 Ines Calder's film"
    assert names_in(text) == ["Ines Calder", "Tom Rusk of Port Vell"]
    assert names_in("who was it? The one. É. Zola wrote") == ["É. Zola"]
    assert names_in("Were Edvin Stroud and Ola Fenwick both Norlandish?") == [
        "Edvin Stroud", "Ola Fenwick", "Norlandish",
    ]  # fmt: skip
