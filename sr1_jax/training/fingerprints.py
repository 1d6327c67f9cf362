"""Fingerprints of weights: equal files, equal values, without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sr1_jax.storage import objects

# Of each file so many pieces are read, from its head to its end: other weights of the same shape
# differ everywhere, and a file's head and size tell all else.
_PIECES = 16
_PIECE_BYTES = 1 << 20
# What counts beside the weights of a Hugging Face folder, or of one of adapters.
_SETTINGS = ("config.json", "tokenizer.json", "adapter_config.json")


def weights_fingerprint(path: Path) -> str:
    """The fingerprint of a file of weights, or of a folder of them, wherever it lies.

    Args:
        path: a Hugging Face folder, of which weights, config and tokenizer count; any other folder
            whole; or a file.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        size = file.stat().st_size
        name = file.relative_to(path) if path.is_dir() else ""
        digest.update(f"{name} {size}\n".encode())
        with open(file, "rb") as content:
            for start in _starts(size):
                content.seek(start)
                digest.update(content.read(_PIECE_BYTES))
    return digest.hexdigest()


def objects_fingerprint(url: str) -> str:
    """The fingerprint of weights in a bucket: by what the service says that it keeps.

    Args:
        url: of a file, or of a folder, of which the same counts as above.
    """
    listed = objects.listing(url)
    weights = {name for name in listed if name.endswith(".safetensors")}
    counted = weights | {*_SETTINGS} if weights else set(listed)
    told = (
        f"{name} {o.size} {o.crc32c}\n" for name, o in sorted(listed.items()) if name in counted
    )
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    weights = sorted(path.glob("*.safetensors"))
    if weights:
        others = [path / name for name in _SETTINGS]
        return weights + [file for file in others if file.is_file()]
    return sorted(file for file in path.rglob("*") if file.is_file())


def _starts(size: int) -> list[int]:
    """Where the pieces of a file begin; all of it, if it is no longer than they are together."""
    if size <= _PIECES * _PIECE_BYTES:
        return list(range(0, size, _PIECE_BYTES))
    last = size - _PIECE_BYTES
    return [last * number // (_PIECES - 1) for number in range(_PIECES)]
