"""Bytes of tokens, and the wall between trusted and untrusted text."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from sr1_jax.models import Tokenizer
from sr1_jax.models.tokenizer import TextStream

TEXT = "Who wrote <search> the naïve café? 2024, $3.50 — 日本語 🙂\n\tdef f(x): return x  # ok\n"
SPECIAL = ["<|end|>", "<|pad|>"]


def _backend(**model_arguments) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(**model_arguments))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT * 3], trainer)
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return backend


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(_backend(), eos_ids=[0], pad_id=1)


def test_every_byte_is_some_token(tokenizer):
    single = {token for token in tokenizer.token_bytes if len(token) == 1}
    assert single == {bytes([byte]) for byte in range(256)}


def test_bytes_of_a_text_are_the_bytes_of_its_tokens(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == TEXT.encode()
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT.encode())  # merges were used


def test_byte_table_agrees_with_the_backend_on_every_id(tokenizer):
    backend = _backend()
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size == backend.get_vocab_size()
    for token_id, token in enumerate(tokenizer.token_bytes):
        want = backend.decode([token_id], skip_special_tokens=True)
        assert token.decode("utf-8", errors="replace") == want


def test_special_tokens_add_no_bytes_and_other_added_tokens_do(tokenizer):
    ids = tokenizer.encode_trusted("a<tool>b<|end|>")
    assert ids[-1] == 0
    assert tokenizer.token_bytes[ids[1]] == b"<tool>"
    assert tokenizer.token_bytes[0] == tokenizer.token_bytes[1] == b""
    assert tokenizer.decode(ids) == "a<tool>b"


@pytest.mark.parametrize("text", ["<|end|>", "x<|pad|> y", "<tool>", "<|end|><tool><|pad|>"])
def test_untrusted_text_never_gives_added_tokens(tokenizer, text):
    added = {0, 1, tokenizer.vocab_size - 1}
    assert added & set(tokenizer.encode_trusted(text))
    ids = tokenizer.encode(text)
    assert not added & set(ids)
    assert tokenizer.decode(ids) == text


def test_untrusted_text_cannot_name_a_special_token_as_a_whole_word():
    """A model with `ignore_merges` looks a word up before it merges."""
    backend = _backend(ignore_merges=True)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ids = Tokenizer(backend, eos_ids=[0], pad_id=1).encode("<|end|>")
    assert ids and not {0, 1} & set(ids)


def test_untrusted_text_cannot_merge_its_way_to_a_special_token():
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, merges=[("<", "s"), ("<s", ">")]
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend, eos_ids=[4], pad_id=4)
    assert tokenizer.encode_trusted("<s>") == [4]
    assert tokenizer.encode("<s>") == [3, 2]


def test_an_unknown_byte_does_not_become_a_special_token():
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<unk>"])
    tokenizer = Tokenizer(backend, eos_ids=[0], pad_id=0)
    assert tokenizer.encode_trusted("a?a") == [1, 0, 1]
    assert tokenizer.encode("a?a") == [1, 1]


def test_broken_utf8_becomes_the_replacement_character(tokenizer):
    by_bytes = {token: i for i, token in enumerate(tokenizer.token_bytes)}
    euro = [by_bytes[bytes([byte])] for byte in "€".encode()]
    assert tokenizer.decode(euro) == "€"
    assert tokenizer.decode(euro[:2]) == "\ufffd"
    assert tokenizer.decode([by_bytes[b"a"], euro[2], by_bytes[b"b"]]) == "a\ufffdb"


@pytest.mark.parametrize(
    "model, decoder",
    [
        (models.BPE(vocab={"a": 0}, merges=[]), decoders.Metaspace()),
        (models.BPE(vocab={"a": 0}, merges=[]), None),
        (models.WordLevel(vocab={"a": 0}, unk_token="a"), decoders.ByteLevel()),
    ],
)
def test_other_tokenizers_are_refused(model, decoder):
    backend = tokenizers.Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        Tokenizer(backend, eos_ids=[0], pad_id=0)


@pytest.mark.parametrize("eos_ids, pad_id", [([10_000], 0), ([0], 10_000), ([0], -1)])
def test_ids_outside_the_vocabulary_are_refused(eos_ids, pad_id):
    with pytest.raises(ValueError, match="lies outside the tokenizer's vocabulary"):
        Tokenizer(_backend(), eos_ids=eos_ids, pad_id=pad_id)


def test_save_and_load_round_trip(tokenizer, tmp_path):
    file = str(tmp_path / "tokenizer.json")
    tokenizer.save(file)
    again = Tokenizer(tokenizers.Tokenizer.from_file(file), eos_ids=[0], pad_id=1)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.token_bytes == tokenizer.token_bytes


def test_characters_come_whole_however_a_text_is_divided(tokenizer):
    text = TEXT + "Ж語漢🦊."
    ids, stream = tokenizer.encode(text), TextStream(tokenizer)
    assert any(
        len(tokenizer.token_bytes[i]) == 1 and tokenizer.token_bytes[i][0] > 127 for i in ids
    )
    pieces = [stream.add([i]) for i in ids]
    assert "".join(pieces) == text and stream.end() == ""
    assert "\ufffd" not in "".join(pieces)


SMALL = Tokenizer(_backend(), eos_ids=[0], pad_id=1)


@given(st.lists(st.lists(st.integers(0, 330), max_size=6), max_size=6))
def test_pieces_of_any_ids_are_the_text_of_all(pieces):
    tokenizer = SMALL
    stream = TextStream(tokenizer)
    for _ in range(2):  # a second text begins anew
        text = "".join(stream.add(piece) for piece in pieces) + stream.end()
        assert text == tokenizer.decode([i for piece in pieces for i in piece])


def test_the_fingerprint_is_of_all_that_decides_ids(tokenizer):
    def fingerprint(**changes):
        settings = {name: getattr(tokenizer, name) for name in ("eos_ids", "pad_id", "bos_token")}
        settings |= {"chat_template": tokenizer.chat_template}
        return Tokenizer(tokenizer._trusted, **settings | changes).fingerprint

    assert fingerprint() == tokenizer.fingerprint
    changes = ({"pad_id": 7}, {"eos_ids": (5,)}, {"chat_template": "x"}, {"bos_token": "<b>"})
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == 5
