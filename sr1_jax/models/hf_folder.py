"""Reads a Hugging Face folder: config.json, *.safetensors, tokenizer.json and its companions."""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import safetensors
import tokenizers

from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.families import Family, Shape, family_of
from sr1_jax.models.rotary import RopeScaling
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.models.weights import Checkpoint

# Mapped at a time by a thread: enough that opening the file costs nothing beside it.
_BLOCK_BYTES = 1 << 26

# Settings that change the computation in a way the decoder does not know, and what leaves it
# as it is. A key that is not in the file is at its default.
_MUST_BE = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}


def read_hf_folder(folder: Path, *, dtype: str, param_dtype: str) -> Checkpoint:
    """Config, tokenizer and tensor names of a folder; see `load_pretrained` for the errors."""
    config_file = folder / "config.json"
    raw = _read_json(config_file)
    family = family_of(_required(raw, "model_type", config_file), str(config_file))
    config = _decoder_config(raw, family, config_file, dtype=dtype, param_dtype=param_dtype)
    tensors = _SafetensorsFiles(folder)
    return Checkpoint(
        path=str(folder),
        config_file=str(config_file),
        form="hf",
        family=family,
        config=config,
        tokenizer=_read_tokenizer(folder, raw),
        shapes=tensors.shapes,
        rows=tensors.rows,
        block_bytes=_BLOCK_BYTES,
    )


def _decoder_config(
    raw: dict[str, Any], family: Family, file: Path, *, dtype: str, param_dtype: str
) -> DecoderConfig:
    for key, value in _MUST_BE.items():
        if raw.get(key, value) != value:
            raise ValueError(
                f"{file}: {key}={json.dumps(raw[key])} is not supported; it must be "
                f"{json.dumps(value)}."
            )

    window = raw.get("sliding_window")
    if raw.get("model_type") == "mistral" and window is not None:
        raise ValueError(
            f"{file}: sliding_window={window} is not supported; only Mistral models that attend "
            "to the whole context are."
        )

    def size(key: str, default: int | None = None) -> int:
        value = default if raw.get(key) is None else raw[key]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{file}: {key}={json.dumps(value)} must be a positive integer.")
        return value

    # Newer files keep the base in `rope_parameters` with the scaling, older ones beside it.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    width, heads = size("hidden_size"), size("num_attention_heads")
    return DecoderConfig(
        vocab_size=size("vocab_size"),
        width=width,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", width // heads),
        ff_width=size("intermediate_size"),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
        rope_scaling=_rope_scaling(rope, raw, file),
        max_positions=size("max_position_embeddings", 32_768),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_embeddings=raw.get("tie_word_embeddings", False),
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _rope_scaling(rope: dict[str, Any], raw: dict[str, Any], file: Path) -> RopeScaling | None:
    """What the file says of longer contexts; None where positions are as they were trained."""
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{file}: {key}.partial_rotary_factor={rope['partial_rotary_factor']} is not "
            "supported; it must be 1.0."
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    needed = {"factor": "factor"}
    if kind == "llama3":
        needed |= {
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        }
    for theirs in needed.values():
        if not isinstance(rope.get(theirs, 1), (int, float)):
            raise ValueError(f"{file}: {key}.{theirs}={rope[theirs]!r} must be a number.")
    try:
        scaling = RopeScaling(
            kind, **({"factor": 1.0} | {o: rope[t] for o, t in needed.items() if t in rope})
        )
    except ValueError as error:
        raise ValueError(f"{file}: {key}: {error}") from error
    if missing := [theirs for theirs in needed.values() if theirs not in rope]:
        raise ValueError(f"{file}: {key} has no {', '.join(missing)}.")
    return scaling


class _SafetensorsFiles:
    """The tensors of all safetensors files of a folder, under one roof."""

    _FLOATS: ClassVar = {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16
    }  # fmt: skip

    def __init__(self, folder: Path):
        self.shapes: dict[str, Shape] = {}
        self._file_of: dict[str, Path] = {}
        self._place_of: dict[str, tuple[int, np.dtype]] = {}
        indices = sorted(folder.glob("*.safetensors.index.json"))
        promised = self._promised(indices[0]) if indices else {}
        files = sorted(set(promised.values()) or folder.glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"{folder}: there is no *.safetensors file. Weights of another form (such as "
                "pytorch_model.bin) are not read; convert them to safetensors."
            )
        for file in files:
            self._scan(file)
        for name, file in promised.items():
            if self._file_of.get(name) != file:
                raise ValueError(f"{indices[0]}: {name} is not in {file.name}, as it says.")

    @staticmethod
    def _promised(index: Path) -> dict[str, Path]:
        """Where the index says each tensor is."""
        weight_map = _required(_read_json(index), "weight_map", index)
        promised = {name: index.parent / file for name, file in weight_map.items()}
        if missing := sorted({f.name for f in promised.values() if not f.is_file()}):
            raise ValueError(
                f"{index}: shards are missing from the folder: {', '.join(missing)}. Download them."
            )
        return promised

    def _scan(self, file: Path) -> None:
        with self._open(file) as tensors, open(file, "rb") as raw:
            # The library has checked the header; where tensors begin, it does not tell.
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
            data = raw.tell()
            for name in tensors.keys():  # noqa: SIM118 (a handle, not a mapping)
                if name in self._file_of:
                    raise ValueError(
                        f"{file}: {name} is in {self._file_of[name].name} too; only one of the "
                        "files can be meant."
                    )
                view = tensors.get_slice(name)
                if view.get_dtype() not in self._FLOATS:
                    raise ValueError(
                        f"{file}: {name} has dtype {view.get_dtype()}; only "
                        f"{', '.join(self._FLOATS)} are supported."
                    )
                self._file_of[name] = file
                self.shapes[name] = tuple(view.get_shape())
                dtype = np.dtype(self._FLOATS[view.get_dtype()])
                self._place_of[name] = data + header[name]["data_offsets"][0], dtype

    @staticmethod
    def _open(file: Path):
        try:
            return safetensors.safe_open(file, framework="np")
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{file}: not a complete safetensors file ({error}). It may be cut short; "
                "download it again."
            ) from error

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of a tensor, mapped from its file until the array is let go."""
        start, dtype = self._place_of[name]
        shape = (last - first, *self.shapes[name][1:])
        start += first * math.prod(shape[1:]) * dtype.itemsize
        skipped = start % mmap.ALLOCATIONGRANULARITY
        size = math.prod(shape) * dtype.itemsize
        with open(self._file_of[name], "rb") as file:
            if os.fstat(file.fileno()).st_size < start + size:
                raise ValueError(f"{file.name}: ends in the middle of {name}.")
            mapped = mmap.mmap(
                file.fileno(), skipped + size, access=mmap.ACCESS_READ, offset=start - skipped
            )
        mapped.madvise(mmap.MADV_WILLNEED)  # the disk reads ahead of the first touch
        return np.frombuffer(mapped, dtype, math.prod(shape), skipped).reshape(shape)


def _read_tokenizer(folder: Path, raw_config: dict[str, Any]) -> Tokenizer:
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
    # A file may ask for truncation and padding; a trajectory must never be cut in silence.
    backend.no_truncation()
    backend.no_padding()
    own = _read_json(folder / "tokenizer_config.json", optional=True)
    generation = _read_json(folder / "generation_config.json", optional=True)
    # The tokenizer's own comes first: chat templates mean that one, and so will an export.
    ids = [
        _id_of_token(backend, own.get("eos_token"), folder / "tokenizer_config.json"),
        *(_ids(source.get("eos_token_id")) for source in (generation, raw_config)),
    ]
    eos_ids = list(dict.fromkeys(i for some in ids for i in some))
    pad_ids = [
        *_id_of_token(backend, own.get("pad_token"), folder / "tokenizer_config.json"),
        *_ids(generation.get("pad_token_id")),
        *_ids(raw_config.get("pad_token_id")),
        *eos_ids,
        0,
    ]
    try:
        return Tokenizer(
            backend,
            eos_ids=eos_ids,
            pad_id=pad_ids[0],
            chat_template=_chat_template(folder, own.get("chat_template")),
            bos_token=_content(own.get("bos_token")),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _ids(value: int | list[int] | None) -> list[int]:
    """Token ids of a config entry; some files write -1 for none."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if v is not None and v >= 0]


def _id_of_token(backend: tokenizers.Tokenizer, token: str | dict | None, file: Path) -> list[int]:
    """Id of a token that tokenizer_config.json names, by its text or as a dictionary."""
    content = _content(token)
    if content is None:
        return []
    token_id = backend.token_to_id(content)
    if token_id is None:
        raise ValueError(f"{file}: the token {content!r} is not in tokenizer.json.")
    return [token_id]


def _content(token: str | dict | None) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, value: str | list[dict[str, str]] | None) -> str | None:
    """The default template: a file of its own in newer folders, else in tokenizer_config.json."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    if isinstance(value, list):
        return {entry["name"]: entry["template"] for entry in value}.get("default")
    return value


def _read_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    if not file.is_file():
        if optional:
            return {}
        raise ValueError(f"{file}: there is no such file.")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must hold a JSON object, not a {type(value).__name__}.")
    return value


def _required(raw: dict[str, Any], key: str, file: Path) -> Any:
    if raw.get(key) is None:
        raise ValueError(f"{file}: the key '{key}' is missing.")
    return raw[key]
