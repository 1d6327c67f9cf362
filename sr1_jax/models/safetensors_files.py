"""The tensors of a Hugging Face folder: all of its safetensors files."""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path, PurePosixPath

import ml_dtypes
import numpy as np
import safetensors

from sr1_jax.models.families import Shape
from sr1_jax.models.json_file import JsonObject

FLOATS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16
}  # fmt: skip


class SafetensorsFiles:
    """The tensors of all safetensors files of a folder, under one roof.

    Args:
        folder: with *.safetensors, and where they are several, perhaps their index.
        only: the one file to read, if not all.
        ignored: ends of names of tensors that are passed over, of whatever dtype.

    Attributes:
        shapes: of every tensor, by name.
        files: that each is in, by name.

    Raises:
        ValueError: naming the file: there is none, one is cut short or outside the folder, or
            tensors are not where the index says, twice there, or of no float dtype.
    """

    def __init__(self, folder: Path, only: str | None = None, ignored: tuple[str, ...] = ()):
        self._ignored = ignored
        self.shapes: dict[str, Shape] = {}
        self.files: dict[str, Path] = {}
        self._place_of: dict[str, tuple[int, np.dtype]] = {}
        indices = [] if only else sorted(folder.glob("*.safetensors.index.json"))
        promised = self._promised(indices[0]) if indices else {}
        files = sorted(set(promised.values()) or folder.glob(only or "*.safetensors"))
        if not files:
            raise ValueError(
                f"{folder}: there is no {only or '*.safetensors'} file. Weights of another form "
                "(such as pytorch_model.bin) are not read; convert them to safetensors."
            )
        for file in files:
            self._scan(file)
        for name, file in promised.items():
            if self.files.get(name) != file:
                raise ValueError(f"{indices[0]}: {name} is not in {file.name}, as it says.")

    @staticmethod
    def _promised(index: Path) -> dict[str, Path]:
        """Where the index says each tensor is."""
        promised = {}
        for name, file in JsonObject.read(index).object("weight_map").values.items():
            if not isinstance(file, str):
                raise ValueError(f"{index}: weight_map.{name} must be the name of a file.")
            promised[name] = index.parent / file
            # A link in the folder may lead out of it, as in the cache of Hugging Face; a path may
            # not, since it comes with the weights.
            is_path = PurePosixPath(file).name != file or "\\" in file
            if is_path and not promised[name].resolve().is_relative_to(index.parent.resolve()):
                raise ValueError(
                    f"{index}: weight_map.{name}={file!r} lies outside the folder; shards are "
                    "read from the folder alone."
                )
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
                if name.endswith(self._ignored):
                    continue
                if name in self.files:
                    raise ValueError(
                        f"{file}: {name} is in {self.files[name].name} too; only one of the "
                        "files can be meant."
                    )
                view = tensors.get_slice(name)
                if view.get_dtype() not in FLOATS:
                    raise ValueError(
                        f"{file}: {name} has dtype {view.get_dtype()}; only "
                        f"{', '.join(FLOATS)} are supported."
                    )
                self.files[name] = file
                self.shapes[name] = tuple(view.get_shape())
                dtype = np.dtype(FLOATS[view.get_dtype()])
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
        with open(self.files[name], "rb") as file:
            if os.fstat(file.fileno()).st_size < start + size:
                raise ValueError(f"{file.name}: ends in the middle of {name}.")
            mapped = mmap.mmap(
                file.fileno(), skipped + size, access=mmap.ACCESS_READ, offset=start - skipped
            )
        mapped.madvise(mmap.MADV_WILLNEED)  # the disk reads ahead of the first touch
        return np.frombuffer(mapped, dtype, math.prod(shape), skipped).reshape(shape)
