"""The tokenizer of models trained from scratch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sr1_jax.models.small_tokenizer import END, PAD, load_small_tokenizer, train_small_tokenizer

TEXTS = [
    "Doc 1(Title: Ann Bel) Ann Bel was born in Ula in 1961.\n",
    "<think> need born</think><search> born Ann Bel</search>\n<information>\n</information>\n",
    "<think> Ann Bel was born in Ula.</think><answer> Ula </answer>",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_small_tokenizer(TEXTS, 400)


def pieces(tokenizer, text):
    return [tokenizer.token_bytes[i].decode() for i in tokenizer.encode(text)]


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30) | st.lists(st.sampled_from([END, PAD, *TEXTS[:3]])).map("".join))
def test_any_text_comes_back_and_gives_no_special_id(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {*tokenizer.eos_ids, tokenizer.pad_id} & set(ids)


def test_frequent_pieces_are_one_token(tokenizer):
    want = ["<search>", " born", " Ann", " Bel", "</search>"]
    assert pieces(tokenizer, "<search> born Ann Bel</search>") == want
    want = ["Doc 1(Title:", " Ann", " Bel", ")", " Ann", " Bel", " was"]
    assert pieces(tokenizer, "Doc 1(Title: Ann Bel) Ann Bel was") == want


def test_no_token_spans_two_pieces(tokenizer):
    """However frequent a sequence: a tag and what follows, or two words, stay apart."""
    for token in tokenizer.token_bytes:
        text = token.decode(errors="replace")
        if text in "Doc 1(Title:":  # the frame of a passage is one piece
            continue
        assert len(text.split()) <= 1
        assert ">" not in text[:-1] and "<" not in text.strip()[1:]
        assert not any(c.isdigit() for c in text) or text.strip().isdigit()
    assert pieces(tokenizer, "Ula.</think><answer>")[-3:] == [".", "</think>", "<answer>"]


def test_special_tokens(tokenizer):
    assert (END, PAD) == ("<|end|>", "<|pad|>")
    assert tokenizer.encode_trusted(END + PAD) == [*tokenizer.eos_ids, tokenizer.pad_id]
    assert len({*tokenizer.eos_ids, tokenizer.pad_id}) == 2
    assert tokenizer.decode(tokenizer.encode_trusted(f"a{END}")) == "a"


def test_size_is_at_most_what_is_asked_for(tokenizer):
    assert 258 < tokenizer.vocab_size <= 400
    bare = train_small_tokenizer(TEXTS, 258)
    assert bare.vocab_size == 258
    text = "any €"
    assert [bare.token_bytes[i] for i in bare.encode(text)] == [bytes([b]) for b in text.encode()]
    with pytest.raises(ValueError, match=r"at least 258.*not 257"):
        train_small_tokenizer(TEXTS, 257)


def test_training_is_reproducible_and_saved_files_load(tokenizer, tmp_path):
    again = train_small_tokenizer(iter(TEXTS), 400)
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    loaded = load_small_tokenizer(path)
    for other in (again, loaded):
        assert other.token_bytes == tokenizer.token_bytes
        assert (other.eos_ids, other.pad_id) == (tokenizer.eos_ids, tokenizer.pad_id)
        assert other.encode("".join(TEXTS[:3]) + END) == tokenizer.encode("".join(TEXTS[:3]) + END)
