"""A thin layer over `tokenizers`: trusted and untrusted text, and the bytes of each token."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence

import tokenizers

# GPT-2's reversible map of bytes to printable characters, as used by every byte-level BPE:
# printable Latin-1 stands for itself, the other 68 bytes are shifted to 256 and up.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SHIFTED = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(_SHIFTED)
}

# See `Tokenizer.settled`: words at the end of a text that what follows may change, and what may.
_OPEN_WORDS = 4
_ANY_MORE = (
    "",
    "a",
    " a",
    "A'll",
    "'s",
    "1",
    " 12",
    ".",
    " ?!",
    "\n",
    " \n a",
    "\t",
    "é",
    "\u0301",
    "日",
)


class Tokenizer:
    """Ids of texts and back.

    Args:
        backend: a byte-level `tokenizers.Tokenizer`.
        eos_ids: ids that end a response, that which its chat template means first.
        pad_id: id used for padding; masks, not this id, say what is padding.
        chat_template: Jinja source of the model's chat template, if it has one.
        bos_token: what that template puts first, if anything.

    Raises:
        ValueError: the backend is not byte-level, or an id lies outside its vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int],
        pad_id: int,
        chat_template: str | None = None,
        bos_token: str | None = None,
    ):
        description = json.loads(backend.to_str())
        kind, decoder = description["model"]["type"], description.get("decoder")
        if kind != "BPE" or "ByteLevel" not in json.dumps(decoder):
            raise ValueError(
                f"The tokenizer is not a byte-level BPE (its model is {kind}, its decoder "
                f"{decoder}); the tag automaton needs the bytes of each token."
            )
        self._trusted = backend
        # Text that we did not write must not become a special token, so it is encoded by a
        # copy of the tokenizer that has never heard of them.
        added = description.pop("added_tokens", None) or []
        self._special_ids = frozenset(token["id"] for token in added if token["special"])
        self._added = {token["id"]: token["content"] for token in added}
        model = _without(description["model"], set(self._added.values()))
        self._untrusted = tokenizers.Tokenizer.from_str(
            json.dumps({**description, "added_tokens": [], "post_processor": None, "model": model})
        )
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.pad_id = pad_id
        self.chat_template = chat_template
        self.bos_token = bos_token
        for token_id in (*self.eos_ids, pad_id):
            if not 0 <= token_id < self.vocab_size:
                raise ValueError(
                    f"Token id {token_id} lies outside the tokenizer's vocabulary of "
                    f"{self.vocab_size}."
                )

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._trusted.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the ids of a text: equal where all texts have the same ids."""
        told = (self._trusted.to_str(), self.eos_ids, self.pad_id, self.chat_template)
        return hashlib.sha256(repr((*told, self.bos_token)).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing in it becomes an added or special token."""
        return self._untrusted.encode(text, add_special_tokens=False).ids

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of our own text (a prompt template), in which special tokens mean themselves."""
        return self._trusted.encode(text, add_special_tokens=False).ids

    def split_added(self, text: str) -> list[str | int]:
        """Our own text, split at its added and special tokens: plain text, an id, plain text, ….

        `encode` of each plain part gives what `encode_trusted` of the whole has there.
        """
        encoded = self._trusted.encode(text, add_special_tokens=False)
        pieces: list[str | int] = []
        end = 0
        for token_id, (start, stop) in zip(encoded.ids, encoded.offsets):
            if token_id in self._added:
                pieces += [text[end:start], token_id]
                end = stop
        return [piece for piece in (*pieces, text[end:]) if piece != ""]

    def settled(self, text: str) -> tuple[list[int], str]:
        """What of a plain text's encoding no continuation changes.

        Byte-level tokenizers first split a text into words, from the left, and what follows
        affects only the last of them. Four are left open, and the rule is tried on examples.

        Returns:
            The ids of the text's beginning, and the rest of it: for any continuation,
            `encode(text + more)` is these ids and `encode(rest + more)`.
        """
        encoded = self._untrusted.encode(text, add_special_tokens=False)
        words = encoded.word_ids
        starts = [i for i in range(1, len(words)) if words[i] != words[i - 1]]
        if len(starts) < _OPEN_WORDS:
            return [], text
        first = starts[-_OPEN_WORDS]
        ids, rest = encoded.ids[:first], text[encoded.offsets[first][0] :]
        if any(self.encode(text + more) != ids + self.encode(rest + more) for more in _ANY_MORE):
            return [], text
        return ids, rest

    @functools.cached_property
    def most_ids_a_byte(self) -> int | None:
        """How many ids `encode` makes of a byte of UTF-8, at most; None where that is not known.

        A byte is at most one id. NFC, which Qwen's tokenizers ask for, makes text up to three times
        as long (Unicode's FAQ on normalization).
        """
        normalizer = json.loads(self._untrusted.to_str()).get("normalizer")
        if normalizer is None:
            return 1
        return 3 if normalizer.get("type") == "NFC" else None

    @functools.cached_property
    def prefix_ids(self) -> list[int]:
        """What its tokenizer puts before any text, since the model was trained so: Llama's
        beginning of text; mostly nothing."""
        plain, whole = (
            self._trusted.encode("a", add_special_tokens=more).ids for more in (False, True)
        )
        starts = range(len(whole) - len(plain) + 1)
        return whole[: next((i for i in starts if whole[i : i + len(plain)] == plain), 0)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, broken UTF-8 becomes U+FFFD.

        So are ids past the vocabulary: a model may have more rows of logits, and sample one.
        """
        return self.bytes_of(ids).decode("utf-8", errors="replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """The bytes that `decode` makes a text of."""
        table = self.token_bytes
        return b"".join(table[i] for i in map(int, ids) if i < len(table))

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes each id adds to the text; empty for special tokens and unused ids."""
        table = [b""] * self.vocab_size
        for token, token_id in self._untrusted.get_vocab(with_added_tokens=False).items():
            if token_id not in self._added:
                table[token_id] = _bytes_of(token)
        for token_id, content in self._added.items():
            if token_id not in self._special_ids:
                table[token_id] = content.encode()
        return table

    @functools.cached_property
    def longest_token(self) -> int:
        """The number of bytes that the longest token adds to the text."""
        return max(map(len, self.token_bytes))

    def token(self, token_id: int) -> str:
        """The token of an id, as tokenizer.json spells it."""
        return self._trusted.id_to_token(token_id)

    def save(self, path: str) -> None:
        """Writes the tokenizer.json of the backend."""
        self._trusted.save(path)


class TextStream:
    """Text of ids that come piece by piece: the pieces joined are `decode` of all ids.

    A character whose bytes are split over two pieces comes whole, with the second.

    Args:
        tokenizer: whose ids they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, ids: Iterable[int]) -> str:
        """The text that is sure after some more ids."""
        return self._decoder.decode(self._tokenizer.bytes_of(ids))

    def end(self) -> str:
        """What is left: U+FFFD for a character that was begun. Another text may follow."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _without(model: dict, tokens: set[str]) -> dict:
    """The BPE model without some tokens: no merge, whole-word match or unknown byte gives one."""

    def harmless(merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return tokens.isdisjoint((left, right, left + right))

    return {
        **model,
        "unk_token": None if model.get("unk_token") in tokens else model.get("unk_token"),
        "vocab": {token: i for token, i in model["vocab"].items() if token not in tokens},
        "merges": [merge for merge in model["merges"] if harmless(merge)],
    }


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode()  # a reserved name that is not written in the byte alphabet
