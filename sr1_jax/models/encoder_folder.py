"""Reads an encoder of texts from a Hugging Face folder: BERT's family, or a decoder as embedder."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx

from sr1_jax.models.encoder import Encoder, EncoderConfig, pool
from sr1_jax.models.encoder_recipe import Recipe, read_recipe
from sr1_jax.models.families import family_of
from sr1_jax.models.hf_config import decoder_config
from sr1_jax.models.json_file import JsonObject
from sr1_jax.models.safetensors_files import SafetensorsFiles
from sr1_jax.models.weights import ModelFiles, build, check_tensors
from sr1_jax.paths import sha256_of

BERT, ROBERTA, DECODERS = ("bert",), ("roberta", "xlm-roberta"), ("qwen3", "qwen2", "mistral")
# Follow from the config, or belong to heads that no vector comes from.
_IGNORED = ("position_ids", "token_type_ids", "lm_head.weight")
_HEADS = re.compile(r"(pooler|cls|lm_head|classifier)\.")

# Parameter of ours -> tensor of theirs; `{}` stands for the layer.
_OUTSIDE = {
    "words.embedding": "embeddings.word_embeddings.weight",
    "positions.embedding": "embeddings.position_embeddings.weight",
    "types.embedding": "embeddings.token_type_embeddings.weight",
    "norm.scale": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER = "encoder.layer.{}."
_INSIDE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "ff_norm": "output.LayerNorm",
}


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """An encoder with all that makes vectors of texts.

    Attributes:
        path: of its folder.
        graph, params: of the module, as `nnx.split` gives them.
        tokenizer: adds the special tokens that the model wants; cuts nothing.
        recipe: pooling, prefixes, length.
        width: D, of a vector.
        fingerprint: of weights, tokenizer and recipe, but for the prefix of queries: where it is
            the same, so are the vectors of passages, rounding apart.
    """

    path: Path
    graph: nnx.GraphDef
    params: Any
    tokenizer: tokenizers.Tokenizer
    recipe: Recipe
    width: int
    fingerprint: str

    def embed(self, params: Any, ids_BT: jax.Array, length_B: jax.Array) -> jax.Array:
        """Vectors of right-padded sequences, to be jitted: [B, D] float32.

        Args:
            params: as `params`; an argument, so that they are not compiled in.
            ids_BT: int32.
            length_B: int32, tokens of each row.
        """
        model = nnx.merge(self.graph, params)
        bidirectional = isinstance(model, Encoder)
        hidden_BTD = model(ids_BT, length_B) if bidirectional else model(ids_BT)
        recipe = self.recipe
        return pool(hidden_BTD, length_B, recipe.pooling, normalized=recipe.normalized)


def load_encoder(folder: str | Path, *, dtype: str = "float32", **recipe: Any) -> TextEncoder:
    """Reads an encoder; nothing is ever unpickled.

    Args:
        folder: config.json, *.safetensors, and tokenizer.json or vocab.txt. Kinds are bert,
            roberta, xlm-roberta, and of decoders qwen3, qwen2 and mistral.
        dtype: what activations are computed in.
        recipe: see `read_recipe`: pooling, normalized, max_tokens, query_prefix, passage_prefix.

    Raises:
        ValueError: naming the file and the key or tensor, or the setting.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; name that of an encoder.")
    config = JsonObject.read(folder / "config.json")
    kind = config.string("model_type")
    known = (*BERT, *ROBERTA, *DECODERS)
    if kind not in known:
        raise config.error("model_type", f"be one of {', '.join(known)}")
    read = _read_decoder if kind in DECODERS else read_bert
    tokenizer = read_tokenizer(folder)
    module, most_tokens = read(folder, config, kind, dtype)
    found = read_recipe(folder, config, most_tokens, **recipe)
    width = config.integer("hidden_size")
    check_vocabulary(config, tokenizer)
    graph, params = nnx.split(module)
    told = repr(dataclasses.replace(found, query_prefix=""))
    fingerprint = folder_fingerprint(folder, config, told)
    return TextEncoder(folder, graph, params, tokenizer, found, width, fingerprint)


def check_vocabulary(config: JsonObject, tokenizer: tokenizers.Tokenizer) -> None:
    """Refuses a tokenizer whose ids the model has no embeddings for.

    Raises:
        ValueError: naming the file and the key.
    """
    if (ids := tokenizer.get_vocab_size()) > config.integer("vocab_size"):
        raise config.error("vocab_size", f"be at least {ids}, the number of the tokenizer's ids")


def folder_fingerprint(folder: Path, config: JsonObject, told: str) -> str:
    """Hash of a model's weights, tokenizer and config, and of what else is told of its use."""
    digest = hashlib.sha256(told.encode())
    digest.update(repr(sorted(_what_counts(config.values).items())).encode())
    for pattern in ("*.safetensors", "tokenizer.json", "vocab.txt"):
        for file in sorted(folder.glob(pattern)):
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _what_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the name that the folder once had and the version that wrote it."""
    return {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}


def encoder_config(config: JsonObject, kind: str, dtype: str) -> EncoderConfig:
    """Shape of an encoder by config.json.

    Raises:
        ValueError: naming the file and the key.
    """
    if config.string("position_embedding_type", "absolute") != "absolute":
        raise config.error("position_embedding_type", "be absolute; no other is supported")
    first = 0
    if kind in ROBERTA:  # positions count from the one after that of padding
        first = 2 if config.get("pad_token_id") is None else config.token_ids("pad_token_id")[0] + 1
    try:
        return EncoderConfig(
            vocab_size=config.integer("vocab_size"),
            width=config.integer("hidden_size"),
            layers=config.integer("num_hidden_layers"),
            heads=config.integer("num_attention_heads"),
            ff_width=config.integer("intermediate_size"),
            positions=config.integer("max_position_embeddings"),
            first_position=first,
            types=config.integer("type_vocab_size", 2),
            norm_eps=config.number("layer_norm_eps", 1e-12),
            activation=config.string("hidden_act", "gelu"),
            dtype=dtype,
        )
    except ValueError as error:
        named = str(error).startswith(str(config.file))
        raise error if named else ValueError(f"{config.file}: {error}") from error


def read_bert(folder: Path, config: JsonObject, kind: str, dtype: str) -> tuple[Encoder, int]:
    """An encoder of BERT's family, and how many tokens a sequence has at most.

    Args:
        folder: with *.safetensors; tensors of heads are passed over.
        config: its config.json.
        kind: of `BERT` or `ROBERTA`.
        dtype: what activations are computed in.

    Raises:
        ValueError: naming the file and the key or tensor.
    """
    shape = encoder_config(config, kind, dtype)
    tensors = NamedTensors(folder)
    model = nnx.eval_shape(lambda: Encoder(shape, rngs=nnx.Rngs(0)))
    state = nnx.to_flat_state(nnx.state(model))
    filled = []
    for path, variable in state:
        name = ".".join(map(str, path))
        if path[0] == "layers":
            array = _stacked(tensors, name, variable.shape)
        else:
            array = tensors.read(_OUTSIDE[name], variable.shape)
        filled.append((path, variable.replace(jnp.asarray(array.reshape(variable.shape)))))
    if left := sorted(name for name in tensors.unread if not _HEADS.match(name)):
        raise ValueError(f"{folder}: the tensor {left[0]} has no place in a {kind} encoder.")
    nnx.update(model, nnx.from_flat_state(filled))
    return model, shape.max_tokens


def _stacked(tensors: NamedTensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensors of all layers that make up a parameter `layers.PART.LEAF` of this shape."""
    _, part, leaf = name.split(".")
    theirs = _LAYER + _INSIDE[part] + (".bias" if leaf == "bias" else ".weight")
    layers, *own = shape
    stored = (math.prod(own),)
    if leaf == "kernel":  # [out, in] there
        inputs = 2 if part == "o" else 1
        stored = (math.prod(own[inputs:]), math.prod(own[:inputs]))
    return np.stack([tensors.read(theirs.format(layer), stored).T for layer in range(layers)])


def bert_tensors(encoder: Encoder) -> dict[str, np.ndarray]:
    """The tensors of an encoder as transformers names and lays them out, float32: the reverse of
    `read_bert`."""
    tensors = {}
    for path, variable in nnx.to_flat_state(nnx.state(encoder)):
        name = ".".join(map(str, path))
        array = np.asarray(variable.get_value(), np.float32)
        if path[0] != "layers":
            tensors[_OUTSIDE[name]] = array
            continue
        _, part, leaf = name.split(".")
        theirs = _LAYER + _INSIDE[part] + (".bias" if leaf == "bias" else ".weight")
        for layer, own in enumerate(array):
            if leaf == "kernel":  # [out, in] there
                inputs = math.prod(own.shape[: 2 if part == "o" else 1])
                own = own.reshape(inputs, -1).T
            else:
                own = own.reshape(-1)
            tensors[theirs.format(layer)] = np.ascontiguousarray(own)
    return tensors


class NamedTensors:
    """Tensors by their names without what some files put before all of them, as float32.

    Args:
        folder: with *.safetensors.

    Attributes:
        shapes: by full name.
        unread: names that stand behind the prefix and were not read yet.
    """

    _PREFIXES = ("", "bert.", "roberta.")

    def __init__(self, folder: Path):
        files = SafetensorsFiles(folder, ignored=_IGNORED)
        self._folder = folder
        has = "embeddings.word_embeddings.weight"
        self._prefix = next((p for p in self._PREFIXES if p + has in files.shapes), "")
        self._files, self.shapes = files, files.shapes
        cut = len(self._prefix)
        mine = (name[cut:] for name in files.shapes if name.startswith(self._prefix))
        self.unread = set(mine)

    def full_name(self, name: str) -> str:
        """With what stands before it in the files."""
        return self._prefix + name

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor of this shape, by its name without the prefix.

        Raises:
            ValueError: it is not there, has another shape, or holds numbers that are not finite.
        """
        return self.read_full(self.full_name(name), shape)

    def read_full(self, full: str, shape: tuple[int, ...]) -> np.ndarray:
        """As `read`, by the name that the files have."""
        found = self._files.shapes.get(full)
        if found is None:
            raise ValueError(f"{self._folder}: the tensor {full} is in no safetensors file.")
        file = self._files.files[full]
        if found != shape:
            raise ValueError(f"{file}: {full} has shape {found}, but config.json means {shape}.")
        self.unread.discard(full.removeprefix(self._prefix))
        array = np.array(self._files.rows(full, 0, found[0]), np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: {full} holds numbers that are not finite.")
        return array


def _read_decoder(
    folder: Path, config: JsonObject, kind: str, dtype: str
) -> tuple[nnx.Module, int]:
    """The trunk of a decoder; embedders are stored without head and mostly without `model.`."""
    family = family_of(kind, str(config.file))
    shape = dataclasses.replace(
        decoder_config(config, kind, family, dtype=dtype, param_dtype=dtype), tied_embeddings=True
    )
    tensors = SafetensorsFiles(folder, ignored=_IGNORED)
    ours = {_with_model(name): name for name in tensors.shapes}
    files = ModelFiles(
        path=str(folder),
        config_file=str(config.file),
        form="hf",
        family=family,
        config=shape,
        tokenizer=None,
        shapes={name: tensors.shapes[theirs] for name, theirs in ours.items()},
        files={name: tensors.files[theirs] for name, theirs in ours.items()},
        rows=lambda name, first, last: tensors.rows(ours[name], first, last),
        block_bytes=1 << 26,
    )
    check_tensors(files)
    return build(files).trunk, shape.max_positions


def _with_model(name: str) -> str:
    return name if name.startswith("model.") else f"model.{name}"


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder; it neither cuts nor pads.

    Raises:
        ValueError: naming the file that is missing or cannot be read.
    """
    file, words = folder / "tokenizer.json", folder / "vocab.txt"
    readers: dict[Path, Callable[[], tokenizers.Tokenizer]] = {
        file: lambda: tokenizers.Tokenizer.from_file(str(file)),
        words: lambda: _word_pieces(folder, words),
    }
    for path, read in readers.items():
        if not path.is_file():
            continue
        try:
            tokenizer = read()
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{path}: not a readable tokenizer ({error}).") from error
        # A file may ask for both; what is cut has to be counted, and where a batch is padded to is
        # for who runs the encoder to say.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    raise ValueError(f"{folder}: there is no tokenizer.json and no vocab.txt.")


def _word_pieces(folder: Path, words: Path) -> tokenizers.Tokenizer:
    """BERT's tokenizer by its list of words, with the options of tokenizer_config.json."""
    own = JsonObject.read(folder / "tokenizer_config.json", optional=True)
    options = {
        "lowercase": own.boolean("do_lower_case", True),
        "handle_chinese_chars": own.boolean("tokenize_chinese_chars", True),
        "strip_accents": None if own.get("strip_accents") is None else own.boolean("strip_accents"),
    }
    built = tokenizers.BertWordPieceTokenizer(str(words), **options)
    return tokenizers.Tokenizer.from_str(built.to_str())
