"""A small byte-level tokenizer for models trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from sr1_jax.models.tokenizer import Tokenizer

END, PAD = "<|end|>", "<|pad|>"

# No token reaches beyond one of these: a tag, the frame of a passage, a word, a number. Frequent
# ones become one token each, so that copying a name is copying a token or two.
_PIECES = Regex(r"</?[a-z]+>|Doc \d+\(Title:| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]|\s+")


def train_small_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE whose merges stay inside words.

    Args:
        texts: what to count.
        vocab_size: largest number of ids; at least 258 (bytes and two special tokens).

    Raises:
        ValueError: vocab_size is too small.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (all bytes), not {vocab_size}.")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap_small_tokenizer(backend)


def load_small_tokenizer(path: str) -> Tokenizer:
    """Loads what `Tokenizer.save` of a small tokenizer wrote."""
    return wrap_small_tokenizer(tokenizers.Tokenizer.from_file(path))


def wrap_small_tokenizer(backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(backend, eos_ids=[backend.token_to_id(END)], pad_id=backend.token_to_id(PAD))
