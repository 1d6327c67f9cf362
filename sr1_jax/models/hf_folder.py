"""Reads a Hugging Face folder: config.json, *.safetensors, tokenizer.json and its companions."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from sr1_jax.models.families import family_of
from sr1_jax.models.hf_config import decoder_config
from sr1_jax.models.json_file import JsonObject
from sr1_jax.models.safetensors_files import SafetensorsFiles
from sr1_jax.models.safetensors_objects import SafetensorsObjects
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.models.weights import ModelFiles

# Mapped at a time by a thread: so much that opening the file costs next to nothing.
_BLOCK_BYTES = 1 << 26


def read_hf_folder(
    folder: Path, *, dtype: str, param_dtype: str, url: str | None = None
) -> ModelFiles:
    """Config, tokenizer and tensor names of a folder; see `load_pretrained` for the errors.

    Args:
        folder: with all files, or all but those of tensors.
        dtype, param_dtype: as `load_pretrained`.
        url: of the folder in a bucket that the tensors are in; None: they are in `folder`.
    """
    config = JsonObject.read(folder / "config.json")
    name = config.string("model_type")
    family = family_of(name, str(config.file))
    shape = decoder_config(config, name, family, dtype=dtype, param_dtype=param_dtype)
    tensors = SafetensorsFiles(folder) if url is None else SafetensorsObjects(url, folder)
    return ModelFiles(
        path=url or str(folder),
        config_file=str(config.file),
        form="hf",
        family=family,
        config=shape,
        tokenizer=_read_tokenizer(folder, config),
        shapes=tensors.shapes,
        files=tensors.files,
        rows=tensors.rows,
        block_bytes=_BLOCK_BYTES,
        far=url is not None,
    )


def _read_tokenizer(folder: Path, config: JsonObject) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(
            f"{file}: there is no such file. A tokenizer of the older kind (vocab.json, "
            "merges.txt, tokenizer.model) is not read; save it as a fast tokenizer."
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{file}: not a readable tokenizer ({error}).") from error
    # A file may ask for truncation and padding; a trajectory must never be shortened in silence.
    backend.no_truncation()
    backend.no_padding()
    own = JsonObject.read(folder / "tokenizer_config.json", optional=True)
    generation = JsonObject.read(folder / "generation_config.json", optional=True)
    # The tokenizer's own comes first: chat templates mean that one, and so will an export.
    eos_ids = [
        *_id_of_token(backend, own, "eos_token"),
        *generation.token_ids("eos_token_id"),
        *config.token_ids("eos_token_id"),
    ]
    pad_ids = [
        *_id_of_token(backend, own, "pad_token"),
        *generation.token_ids("pad_token_id"),
        *config.token_ids("pad_token_id"),
        *eos_ids,
        0,
    ]
    try:
        return Tokenizer(
            backend,
            eos_ids=eos_ids,
            pad_id=pad_ids[0],
            chat_template=_chat_template(folder, own),
            bos_token=_content(own, "bos_token"),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _id_of_token(backend: tokenizers.Tokenizer, own: JsonObject, key: str) -> list[int]:
    """Id of a token that tokenizer_config.json names, by its text or as an object."""
    content = _content(own, key)
    if content is None:
        return []
    token_id = backend.token_to_id(content)
    if token_id is None:
        raise ValueError(f"{own.file}: the token {content!r} is not in tokenizer.json.")
    return [token_id]


def _content(own: JsonObject, key: str) -> str | None:
    if isinstance(own.get(key), dict):
        return own.object(key).string("content", None)
    return own.string(key, None)


def _chat_template(folder: Path, own: JsonObject) -> str | None:
    """The default template: a file of its own in newer folders, else in tokenizer_config.json."""
    own_file, key = folder / "chat_template.jinja", "chat_template"
    if own_file.is_file():
        try:
            return own_file.read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{own_file}: not a text in UTF-8 ({error}).") from error
    templates = own.get(key)
    if not isinstance(templates, list):
        return own.string(key, None)
    for entry in templates:
        if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
            raise own.error(key, "be a string, or a list of objects with name and template")
    return next((each["template"] for each in templates if each.get("name") == "default"), None)
