"""Reads a GGUF file of the Llama and Qwen families: metadata, tokenizer, quantised tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import tokenizers
from gguf.constants import GGUFValueType, TokenType
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors

from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.families import HEAD, Family, family_of
from sr1_jax.models.rotary import RopeScaling, rope_frequencies
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.models.weights import ModelFiles

_REQUIRED = object()

# Of the result; dequantising a block takes its float32 and the pieces that become it.
_BLOCK_BYTES = 1 << 23

# The patterns by which each tokenizer cuts text into words before merging, as published in the
# tokenizer.json of the models; for "default", as llama.cpp defines the name.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _cl100k_words(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + "|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


class _PreTokenizer(NamedTuple):
    """Patterns applied one after the other, each to the pieces the one before has left."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False


_GPT2 = _PreTokenizer((_GPT2_WORDS,))
_QWEN2 = _PreTokenizer((_cl100k_words(r"\p{N}"),), nfc=True)
_LLAMA3 = _PreTokenizer((_cl100k_words(r"\p{N}{1,3}"),), ignore_merges=True)
_PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "default": _PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS.removesuffix(r"|\s+"), r"\p{N}+", "[0-9][0-9][0-9]")
    ),
    "smollm": _PreTokenizer((r"\p{N}", _GPT2_WORDS)),
    "qwen2": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def read_gguf(path: Path, *, dtype: str, param_dtype: str) -> ModelFiles:
    """Config, tokenizer and tensor names of a GGUF file; see `load_pretrained` for the errors."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a complete GGUF file ({error}). It may be cut short; download it again."
        ) from error
    metadata = _Metadata(path, reader)
    architecture = metadata.get("general.architecture")
    family = family_of(architecture, f"{path}, general.architecture")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            f"{path}: split.count={metadata.get('split.count')}, one part of a split file. "
            "Join the parts first (llama-gguf-split --merge)."
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop("rope_freqs.weight", None)
    config = _decoder_config(
        metadata, architecture, family, tensors, dtype=dtype, param_dtype=param_dtype
    )
    if factors is not None:
        scaling = _rope_scaling(path, _dequantised(path, factors), config)
        config = dataclasses.replace(config, rope_scaling=scaling)

    def rows_of(name: str, first: int, last: int) -> np.ndarray:
        tensor, rows = tensors[name], slice(first, last)
        heads = _interleaved_heads(architecture, name, config)
        if heads is not None:
            rows = _undo_interleaving(np.arange(_shape(tensor)[0]), heads)[rows]
        return _dequantised(path, tensor, rows)

    return ModelFiles(
        path=str(path),
        config_file=str(path),
        form="gguf",
        family=family,
        config=config,
        tokenizer=_read_tokenizer(metadata),
        shapes={name: _shape(tensor) for name, tensor in tensors.items()},
        files=dict.fromkeys(tensors, path),
        rows=rows_of,
        block_bytes=_BLOCK_BYTES,
    )


class _Metadata:
    """Keys and values of a GGUF file, with errors that name the file and the key."""

    def __init__(self, path: Path, reader: gguf.GGUFReader):
        self.path = path
        self._fields = reader.fields

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        field = self._fields.get(key)
        if field is None:
            if default is _REQUIRED:
                raise ValueError(f"{self.path}: the key '{key}' is missing.")
            return default
        if field.types[-1] == GGUFValueType.STRING:
            values = [str(bytes(field.parts[i]), "utf-8") for i in field.data]
        else:
            values = [field.parts[i][0].item() for i in field.data]
        return values if field.types[0] == GGUFValueType.ARRAY else values[0]

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{self.path}: {key}={value!r} must be one integer, 0 or more.")
        return value


def _decoder_config(
    metadata: _Metadata, architecture: str, family: Family, tensors, *, dtype: str, param_dtype: str
) -> DecoderConfig:
    def integer(key: str, default: Any = _REQUIRED) -> int:
        return metadata.integer(f"{architecture}.{key}", default)

    width, heads = integer("embedding_length"), integer("attention.head_count")
    head_dim = integer("attention.key_length", width // max(1, heads))
    # What would change the computation in a way the decoder does not know.
    for key, plain in {
        "expert_count": 0,
        "attention.sliding_window": 0,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.scaling.type": "none",
        "rope.scale_linear": 1.0,
    }.items():
        value = metadata.get(f"{architecture}.{key}", plain)
        if value != plain:
            raise ValueError(
                f"{metadata.path}: {architecture}.{key}={value!r} is not supported; it must be "
                f"{plain!r}."
            )
    embedding = tensors.get("token_embd.weight")
    shape = dict(
        family=architecture,
        # The number is not in every file; the rows of the embedding always are.
        vocab_size=_shape(embedding)[0] if embedding else integer("vocab_size"),
        width=width,
        layers=integer("block_count"),
        heads=heads,
        kv_heads=integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        ff_width=integer("feed_forward_length"),
        rope_theta=metadata.get(f"{architecture}.rope.freq_base", 10_000.0),
        norm_eps=metadata.get(f"{architecture}.attention.layer_norm_rms_epsilon"),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=HEAD.gguf not in tensors,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    try:
        return DecoderConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{metadata.path}: {error}") from error


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Row-major; GGUF counts dimensions from the fastest."""
    return tuple(int(n) for n in reversed(tensor.shape))


def _rope_scaling(path: Path, factors_E2: np.ndarray, config: DecoderConfig) -> RopeScaling | None:
    """The scaling whose outcome the file holds: what each rotary frequency is divided by.

    It does not hold the rule. That of Llama 3.1 to 3.3 (waves of 8,192 positions and more by the
    whole factor) is recognised, as are factors of one, which say nothing.
    """
    if np.all(factors_E2 == 1.0):
        return None
    scaling = RopeScaling("llama3", float(factors_E2.max()), 1.0, 4.0, 8192)
    plain_E2, scaled_E2 = (
        rope_frequencies(config.head_dim, config.rope_theta, s) for s in (None, scaling)
    )
    # Computed elsewhere, in float32: the last bits differ.
    if len(factors_E2) != len(plain_E2) or not np.allclose(
        factors_E2, plain_E2 / scaled_E2, rtol=1e-4
    ):
        raise ValueError(
            f"{path}: rope_freqs.weight scales the rotary frequencies, and not as Llama 3.1 to 3.3 "
            "do; this is not supported."
        )
    return scaling


def _dequantised(
    path: Path, tensor: gguf.ReaderTensor, rows: slice | np.ndarray = slice(None)
) -> np.ndarray:
    try:
        return gguf.quants.dequantize(tensor.data[rows], tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which is not "
            "supported."
        ) from error


def _interleaved_heads(architecture: str, name: str, config: DecoderConfig) -> int | None:
    """Heads of a tensor whose rows are permuted for interleaved rotary pairs, else None."""
    if architecture != "llama":
        return None
    is_query, is_key = (f".attn_{x}." in name for x in "qk")
    return config.heads if is_query else config.kv_heads if is_key else None


def _undo_interleaving(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows from rotary pairs (2i, 2i + 1) of each head back to pairs (i, i + E / 2)."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _read_tokenizer(metadata: _Metadata) -> Tokenizer:
    path, key = metadata.path, "tokenizer.ggml."
    if (kind := metadata.get(f"{key}model")) != "gpt2":
        raise ValueError(
            f"{path}: {key}model='{kind}' is not supported; only byte-level BPE ('gpt2') is."
        )
    pre = metadata.get(f"{key}pre")
    if pre not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{path}: {key}pre='{pre}' is not supported; supported are "
            f"{', '.join(_PRE_TOKENIZERS)}."
        )
    tokens, types = metadata.get(f"{key}tokens"), metadata.get(f"{key}token_type")
    if len(tokens) != len(types):
        raise ValueError(
            f"{path}: {key}token_type has {len(types)} entries for {len(tokens)} tokens."
        )
    try:
        backend = _backend(tokens, types, metadata.get(f"{key}merges"), _PRE_TOKENIZERS[pre])
        bos_token = _bos_token(metadata, tokens)
        if bos_token and metadata.get(f"{key}add_bos_token", False):
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos_token} $A", special_tokens=[(bos_token, tokens.index(bos_token))]
            )
        eos_ids = [
            metadata.integer(f"{key}{name}_token_id")
            for name in ("eos", "eot")
            if metadata.get(f"{key}{name}_token_id", None) is not None
        ]
        return Tokenizer(
            backend,
            eos_ids=eos_ids,
            pad_id=metadata.integer(f"{key}padding_token_id", [*eos_ids, 0][0]),
            chat_template=metadata.get("tokenizer.chat_template", None),
            bos_token=bos_token,
        )
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ValueError(f"{path}: its tokenizer ({key}*) is not readable: {error}") from error


def _bos_token(metadata: _Metadata, tokens: list[str]) -> str | None:
    key = "tokenizer.ggml.bos_token_id"
    if metadata.get(key, None) is None:
        return None
    if (token_id := metadata.integer(key)) >= len(tokens):
        raise ValueError(f"{key}={token_id} lies outside its {len(tokens)} tokens.")
    return tokens[token_id]


def _backend(
    tokens: list[str], types: list[int], merges: list[str], pre: _PreTokenizer
) -> tokenizers.Tokenizer:
    # Rows of the embedding that no token uses have made-up names in the file.
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types)) if kind != TokenType.UNUSED}
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=pre.ignore_merges,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = {TokenType.CONTROL, TokenType.UNKNOWN}
    backend.add_tokens(
        [
            AddedToken(token, special=kind in special, normalized=False)
            for token, kind in zip(tokens, types)
            if kind in special or kind == TokenType.USER_DEFINED
        ]
    )
    return backend
