"""Cross-encoders in Hugging Face folders: read, begun from an encoder, written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx

from sr1_jax.models.cross_encoder import CrossEncoder
from sr1_jax.models.encoder_folder import (
    BERT,
    ROBERTA,
    NamedTensors,
    bert_tensors,
    check_vocabulary,
    folder_fingerprint,
    read_bert,
    read_tokenizer,
)
from sr1_jax.models.export import new_folder, write_json
from sr1_jax.models.json_file import JsonObject

# Of a pair at most, where nothing else is said and the model has room: passages of 100 words have
# 150 tokens, and attention costs the square.
USUAL_TOKENS = 512
# What a tokenizer consists of, in whatever form a folder has it.
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip
# Ours -> theirs; the first of BERT stands behind the prefix of its encoder.
_BERT_HEAD = {"dense": "pooler.dense", "out": "classifier"}
_ROBERTA_HEAD = {"dense": "classifier.dense", "out": "classifier.out_proj"}


@dataclasses.dataclass(frozen=True)
class PairModel:
    """A cross-encoder with all that makes scores of texts.

    Attributes:
        path: of its folder.
        graph, params: of the module, as `nnx.split` gives them.
        tokenizer: makes of a pair one sequence with its special tokens; cuts nothing.
        typed: whether the model tells the second text from the first by its tokens' type.
        max_tokens: that a pair keeps at most, special tokens included.
        fingerprint: of weights, tokenizer and length: where it is the same so are scores, rounding
            apart.
    """

    path: Path
    graph: nnx.GraphDef
    params: Any
    tokenizer: tokenizers.Tokenizer
    typed: bool
    max_tokens: int
    fingerprint: str

    def score(
        self, params: Any, ids_BT: jax.Array, length_B: jax.Array, type_BT: jax.Array
    ) -> jax.Array:
        """Scores of right-padded pairs, to be jitted: [B] float32; see `CrossEncoder`.

        Args:
            params: as `params`; an argument, so that they are not compiled in.
            ids_BT, length_B, type_BT: int32.
        """
        return nnx.merge(self.graph, params)(ids_BT, length_B, type_BT)


def load_cross_encoder(
    folder: str | Path, *, dtype: str = "float32", max_tokens: int | None = None
) -> PairModel:
    """Reads a cross-encoder; nothing is ever unpickled.

    Args:
        folder: of a BertForSequenceClassification, or that of (XLM-)Roberta, with one label:
            config.json, *.safetensors, and tokenizer.json or vocab.txt.
        dtype: what activations are computed in.
        max_tokens: of a pair; None: 512, or what positions the model has if those are fewer.

    Raises:
        ValueError: naming the file and the key or tensor, or the setting.
    """
    return _read(Path(folder), dtype, max_tokens, seed=None)


def start_cross_encoder(
    folder: str | Path, seed: int, *, dtype: str = "float32", max_tokens: int | None = None
) -> PairModel:
    """A cross-encoder to be trained, from an encoder or from another cross-encoder.

    Args:
        folder: of a BertModel, such as MiniLM's, an (XLM-)RobertaModel, or one of
            `load_cross_encoder`.
        seed: of what parts of the head are not there.
        dtype, max_tokens: as for `load_cross_encoder`.

    Raises:
        ValueError: as `load_cross_encoder`.
    """
    return _read(Path(folder), dtype, max_tokens, seed=seed)


def save_cross_encoder(module: CrossEncoder, source: Path, folder: Path) -> None:
    """Writes a folder that transformers' AutoModelForSequenceClassification loads.

    The folder appears when all of it is written, or not at all.

    Args:
        module: of the sizes that the source has.
        source: folder it was begun from: the rest of its config and its tokenizer are copied.
        folder: must not exist, or be empty.

    Raises:
        ValueError: the folder holds something, or there are several processes.
    """
    config = JsonObject.read(source / "config.json")
    kind = config.string("model_type")
    prefix, head, name = _written_as(kind)
    tensors = {prefix + key: array for key, array in bert_tensors(module.encoder).items()}
    for part, layer in (("dense", module.dense), ("out", module.out)):
        full = prefix + head[part] if head[part].startswith("pooler") else head[part]
        tensors[f"{full}.weight"] = np.ascontiguousarray(np.asarray(layer.kernel[...]).T)
        tensors[f"{full}.bias"] = np.asarray(layer.bias[...])
    own = {
        "architectures": [name],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
    }
    with new_folder(folder) as draft:
        write_json(draft / "config.json", dict(config.values) | own)
        safetensors.numpy.save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        for file in _TOKENIZER_FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, draft / file)


def _written_as(kind: str) -> tuple[str, dict[str, str], str]:
    """What stands before names of the encoder, names of the head, and the class."""
    if kind in BERT:
        return "bert.", _BERT_HEAD, "BertForSequenceClassification"
    family = "XLMRoberta" if kind == "xlm-roberta" else "Roberta"
    return "roberta.", _ROBERTA_HEAD, f"{family}ForSequenceClassification"


def _read(folder: Path, dtype: str, max_tokens: int | None, seed: int | None) -> PairModel:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; name that of a cross-encoder.")
    config = JsonObject.read(folder / "config.json")
    kind = config.string("model_type")
    if kind not in (*BERT, *ROBERTA):
        raise config.error("model_type", f"be one of {', '.join((*BERT, *ROBERTA))}")
    tokenizer = read_tokenizer(folder)
    check_vocabulary(config, tokenizer)
    encoder, most = read_bert(folder, config, kind, dtype)
    length = _length(folder, max_tokens, most)
    module = CrossEncoder(encoder.config, rngs=nnx.Rngs(seed or 0))
    module.encoder = encoder
    _read_head(module, folder, kind, may_lack=seed is not None)
    graph, params = nnx.split(module)
    return PairModel(
        path=folder,
        graph=graph,
        params=params,
        tokenizer=tokenizer,
        typed=kind in BERT and encoder.config.types > 1,
        max_tokens=length,
        fingerprint=folder_fingerprint(folder, config, f"pairs of {length}"),
    )


def _length(folder: Path, max_tokens: int | None, most: int) -> int:
    if max_tokens is None:
        return min(USUAL_TOKENS, most)
    if max_tokens > most:
        raise ValueError(
            f"retrieval.rerank.max_tokens={max_tokens} exceeds the {most} positions of {folder}; "
            "lower it."
        )
    return max_tokens


def _read_head(module: CrossEncoder, folder: Path, kind: str, *, may_lack: bool) -> None:
    tensors = NamedTensors(folder)
    _, head, _ = _written_as(kind)
    for part, outputs in (("dense", module.config.width), ("out", 1)):
        full = head[part]
        if full.startswith("pooler"):
            full = tensors.full_name(full)
        weight = f"{full}.weight"
        found = tensors.shapes.get(weight)
        if part == "out" and found is not None and found[0] != 1:
            raise ValueError(
                f"{folder}: {weight} gives {found[0]} numbers a pair; only cross-encoders with one "
                "label, the score, are supported."
            )
        if found is None:
            if may_lack:
                continue
            raise ValueError(
                f"{folder}: the tensor {weight} is in no safetensors file, so this is no "
                "cross-encoder; python -m sr1_jax.train_reranker makes one of an encoder."
            )
        layer = getattr(module, part)
        kernel = tensors.read_full(weight, (outputs, module.config.width))
        layer.kernel[...] = jnp.asarray(kernel.T)
        layer.bias[...] = jnp.asarray(tensors.read_full(f"{full}.bias", (outputs,)))
