"""A tokenizer with one token for each byte and one that ends a text."""

from __future__ import annotations

import tokenizers

EOS_ID = 256


def byte_backend() -> tokenizers.Tokenizer:
    """Ids 0 to 255 for the bytes, `EOS_ID` for the end."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {char: number for number, char in enumerate(sorted(alphabet))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary | {"<eos>": EOS_ID}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend
