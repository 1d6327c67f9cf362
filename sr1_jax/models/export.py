"""Writes a Hugging Face folder that transformers and vLLM load: the reverse of `hf_folder`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.families import FAMILIES, HEAD, Weight
from sr1_jax.models.tokenizer import Tokenizer


def save_pretrained(
    model: Decoder,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes config, weights, tokenizer and generation config.

    The folder appears when all of it is written, or not at all.

    Args:
        model: the policy; its parameters may be split over devices of this process.
        tokenizer: of the policy.
        folder: must not exist, or be empty.
        dtype: of the weights in the files.
        shard_bytes: at most, of a file that holds more than one tensor.

    Raises:
        ValueError: the folder holds something, no family has a decoder of this kind, it has
            adapters, or there are several processes.
    """
    if model.config.lora is not None:
        raise ValueError("The model has adapters: merge them (merged_model), or save_adapters.")
    family = family_name(model.config)
    with new_folder(folder) as draft:
        write_json(draft / "config.json", hf_config(model.config, tokenizer, family, dtype))
        _write_tokenizer(draft, tokenizer)
        _write_weights(draft, _tensors(model, family, dtype), shard_bytes)


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when the block has ended well.

    Args:
        folder: must not exist, or be empty.

    Raises:
        ValueError: it holds something, or there are several processes.
    """
    folder = Path(folder).resolve()  # a link to an empty folder stays, and what it names is filled
    check_free(folder)
    if jax.process_count() > 1:
        raise ValueError("An export is written by one process: run it on a single host.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        draft = Path(temporary) / "draft"
        draft.mkdir()
        yield draft
        os.replace(draft, folder)  # in the place of an empty folder too


def check_free(folder: Path) -> None:
    """Raises ValueError unless the folder is not there, or empty and can be replaced."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give another folder.")
    where = folder.resolve()
    if where.is_mount() or where == Path.cwd():
        raise ValueError(
            f"{folder} is a mount point or the working directory, which a whole folder cannot "
            "replace; give a new folder inside it."
        )


def family_name(config: DecoderConfig) -> str:
    """The family that the weights came from; of a model from scratch, one that computes alike.

    Raises:
        ValueError: there is none.
    """
    if config.family is not None:
        return config.family
    for name, family in FAMILIES.items():
        if (family.qkv_bias, family.qk_norm) == (config.qkv_bias, config.qk_norm):
            return name
    raise ValueError(
        f"No model family has qkv_bias={config.qkv_bias} and qk_norm={config.qk_norm}; such a "
        "decoder cannot be exported."
    )


def hf_config(
    config: DecoderConfig, tokenizer: Tokenizer, family: str, dtype: str
) -> dict[str, Any]:
    """config.json of a decoder."""
    scaling = config.rope_scaling
    rope = None
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }
    return {
        "architectures": [FAMILIES[family].hf_class],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "use_sliding_window": False,
        "attention_bias": False,
        "eos_token_id": _one_or_all(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
        "torch_dtype": dtype,
        **dict(FAMILIES[family].more),
    }


def _one_or_all(ids: tuple[int, ...]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else list(ids) or None


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": tokenizer.eos_ids[:1], "pad_token": (tokenizer.pad_id,)}
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    own |= {key: tokenizer.token(ids[0]) for key, ids in names.items() if ids}
    if tokenizer.bos_token:
        own["bos_token"] = tokenizer.bos_token
    if tokenizer.chat_template:
        own["chat_template"] = tokenizer.chat_template
    write_json(folder / "tokenizer_config.json", own)
    generation = {"eos_token_id": _one_or_all(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", generation)


def _tensors(model: Decoder, family: str, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays in the layout of the folder, one layer of one parameter at a time."""
    parameters = {
        ".".join(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))
    }
    rows: tuple[Weight, ...] = FAMILIES[family].weights
    if not model.config.tied_embeddings:
        rows += (HEAD,)
    for weight in rows:
        array = parameters[weight.parameter]
        layers = range(model.config.layers) if "{}" in weight.hf else [None]
        for layer in layers:
            part = array if layer is None else array[layer]
            stored = weight.layout.to_stored(np.asarray(jax.device_get(part.astype(dtype))))
            yield weight.hf.format(layer), np.ascontiguousarray(stored)


def _write_weights(folder: Path, tensors: Iterator, shard_bytes: int) -> None:
    """Files of at most `shard_bytes`, and their index if there are several."""
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    total = size = 0

    def write() -> None:
        safetensors.numpy.save_file(
            pending, folder / f"part-{len(shards)}", metadata={"format": "pt"}
        )
        shards.append(list(pending))
        pending.clear()

    for name, array in tensors:
        if pending and size + array.nbytes > shard_bytes:
            write()
            size = 0
        pending[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    write()
    if len(shards) == 1:
        os.rename(folder / "part-0", folder / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"part-{number}", folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Writes an object as people read it."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
