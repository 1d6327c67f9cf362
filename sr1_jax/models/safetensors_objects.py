"""The tensors of a Hugging Face folder in a bucket, read by ranges of bytes.

A safetensors file begins with the length of its header, eight bytes, least significant first; the
header is a JSON object of dtype, shape and place of each tensor, counted from its own end
(https://huggingface.co/docs/safetensors). So of each file only the header and the rows that are
wanted are read, and nothing of it comes to the disk.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from sr1_jax.models.json_file import JsonObject
from sr1_jax.models.safetensors_files import FLOATS
from sr1_jax.storage import objects
from sr1_jax.storage.objects import Stored

_INDEX = "model.safetensors.index.json"
# The library refuses larger headers.
_LONGEST_HEADER = 100_000_000
ENDING = ".safetensors"


class _Place(NamedTuple):
    """Where a tensor is: file, first byte in it, dtype."""

    file: str
    start: int
    dtype: np.dtype


class SafetensorsObjects:
    """As `SafetensorsFiles`, of a folder in a bucket.

    Args:
        url: of the folder.
        folder: here, with its other files.

    Attributes:
        shapes: of every tensor, by name.
        files: that each is in, by name.

    Raises:
        ValueError: as `SafetensorsFiles`.
        BucketAway: the bucket does not answer.
    """

    def __init__(self, url: str, folder: Path):
        self._url = url.rstrip("/")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, epath.Path] = {}
        self._places: dict[str, _Place] = {}
        there = objects.listing(self._url)
        weights = {name: one for name, one in there.items() if name.endswith(ENDING)}
        promised: dict[str, Any] = {}
        if (folder / _INDEX).is_file():
            promised = JsonObject.read(folder / _INDEX).object("weight_map").values
        if missing := sorted({str(file) for file in promised.values()} - set(weights)):
            raise ValueError(
                f"{self._url}/{_INDEX}: shards are missing from the folder: {', '.join(missing)}."
            )
        wanted = sorted(set(promised.values()) or {name for name in weights if "/" not in name})
        if not wanted:
            raise ValueError(f"{self._url}: there is no *{ENDING} file.")
        for name in wanted:
            self._scan(name, weights[name])
        for name, file in promised.items():
            if name not in self._places or self._places[name].file != file:
                raise ValueError(f"{self._url}/{_INDEX}: {name} is not in {file}, as it says.")

    def _scan(self, file: str, stored: Stored) -> None:
        url = objects.join(self._url, file)
        try:
            length = int.from_bytes(objects.read(url, 0, min(8, stored.size)), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, stored.size - 8):
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(objects.read(url, 8, 8 + length))
            header.pop("__metadata__", None)
            for name, told in header.items():
                self._add(file, name, told, 8 + length, stored.size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{url}: not a complete safetensors file ({error}). Upload it again."
            ) from error

    def _add(self, file: str, name: str, told: dict[str, Any], data: int, size: int) -> None:
        shape, (first, last) = tuple(map(int, told["shape"])), told["data_offsets"]
        if name in self._places:
            raise ValueError(f"{name} is in {self._places[name].file} too")
        if told["dtype"] not in FLOATS:
            raise ValueError(f"{name} has dtype {told['dtype']}, not one of {', '.join(FLOATS)}")
        dtype = np.dtype(FLOATS[told["dtype"]])
        if last - first != math.prod(shape) * dtype.itemsize or data + last > size:
            raise ValueError(f"{name} does not end where it should")
        self.shapes[name] = shape
        self.files[name] = epath.Path(objects.join(self._url, file))
        self._places[name] = _Place(file, data + first, dtype)

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of a tensor."""
        place, shape = self._places[name], (last - first, *self.shapes[name][1:])
        row = math.prod(shape[1:]) * place.dtype.itemsize
        start, end = place.start + first * row, place.start + last * row
        data = objects.read(objects.join(self._url, place.file), start, end)
        return np.frombuffer(data, place.dtype).reshape(shape)
