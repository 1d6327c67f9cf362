"""Checksums of a checkpoint: an item of it, written after all others and before it is committed.

A disk gives back what it was given, or not; then a run has to know before it trains on. Of files on
a disk the item has SHA-256; of objects in a bucket what the service says it keeps, CRC-32C, so that
nothing is read again, neither when it is written nor when it is compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from sr1_jax.paths import sha256_of
from sr1_jax.storage import is_bucket, objects

# The item, and the file in it. Orbax finishes items in the order of their names: it has to be last.
ITEM = "sums"
_FILE = "sums.json"
# Orbax adds to it when it commits; it names the items, so that a missing one is noticed.
_METADATA = "_CHECKPOINT_METADATA"
_UNFINISHED = "orbax-checkpoint-tmp"
_THREADS = 8
# Files up to this size are compared even where not the whole checkpoint is.
_SMALL_BYTES = 1 << 16


class ChecksumHandler(ocp.CheckpointHandler):
    """Writes the item.

    Orbax finishes items in the background, in the first process alone.
    """

    def save(self, directory: epath.Path, args: SaveChecksums) -> None:
        """Writes nothing yet."""
        self._before_commit = args.before_commit

    def restore(self, directory: epath.Path, args: RestoreChecksums | None = None) -> None:
        """Does nothing: see `damages`."""

    def finalize(self, directory: epath.Path) -> None:
        """Writes the checksums of all that lies beside the item."""
        found = _sums_of(directory.parent)
        others = (name for name in found if not name.startswith(directory.name))
        if unfinished := [name for name in others if _UNFINISHED in name]:
            raise RuntimeError(f"{unfinished[0]} is not finished, and has no checksum yet.")
        written = {name: sums for name, sums in found.items() if _is_summed(name, directory.name)}
        (directory / _FILE).write_text(json.dumps({"files": written}, indent=0))
        self._before_commit()


@ocp.args.register_with_handler(ChecksumHandler, for_save=True)
@dataclasses.dataclass
class SaveChecksums(ocp.args.CheckpointArgs):
    """Asks for the item.

    Attributes:
        before_commit: called when all else is written. What it raises keeps the checkpoint from
            being committed.
    """

    before_commit: Callable[[], None]


@ocp.args.register_with_handler(ChecksumHandler, for_restore=True)
@dataclasses.dataclass
class RestoreChecksums(ocp.args.CheckpointArgs):
    """Nothing is restored."""


def damages(
    folder: Path | epath.Path, *, whole: bool = True, part: int = 0, parts: int = 1
) -> list[str]:
    """What is wrong with a committed checkpoint, in words; nothing of one without checksums.

    Args:
        folder: of the checkpoint.
        whole: False compares only the sizes of large files on a disk.
        part, parts: which of so many shares of the large files to read.
    """
    there = _sizes(folder)
    try:
        told = _text_of(folder / _METADATA)
        json.loads(told)  # whether it can be read
        if f"{ITEM}/{_FILE}" not in there:
            return [f"{ITEM}/{_FILE} is missing"] if f'"{ITEM}"' in told else []
        wanted = json.loads(_text_of(folder / ITEM / _FILE))["files"]
        wanted = {name: (int(size), str(sum_)) for name, (size, sum_) in wanted.items()}
    except objects.BucketAway:
        raise  # which says nothing of the checkpoint
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{_METADATA} or {ITEM}/{_FILE} cannot be read ({type(error).__name__})"]
    found = []
    for name, (size, _) in wanted.items():
        if name not in there:
            found.append(f"{name} is missing")
        elif there[name] != size:
            found.append(f"{name} has {there[name]} bytes, not {size}")
    if found:
        return found
    large = [name for name, (size, _) in wanted.items() if size > _SMALL_BYTES]
    large = set(large[part::parts]) if whole or is_bucket(folder) else set()
    compared = {n: w for n, w in wanted.items() if n in large or w[0] <= _SMALL_BYTES}
    return list(_changed(folder, compared))


def _changed(folder: Path | epath.Path, wanted: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Files whose checksum is another."""
    if is_bucket(folder):
        there = objects.listing(str(folder))
        sums = {name: f"crc32c:{there[name].crc32c}" for name in wanted}
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            kinds = [(Path(folder, name), sum_.partition(":")[0]) for name, (_, sum_) in
                     wanted.items()]  # fmt: skip
            sums = dict(zip(wanted, threads.map(_sum_of_file, *zip(*kinds)))) if kinds else {}
    for name, (_, sum_) in wanted.items():
        same_kind = sums[name].partition(":")[0] == sum_.partition(":")[0]
        if same_kind and sums[name] != sum_:  # a copy of a checkpoint may be in the other place
            yield f"{name} was changed (its checksum is another)"


def _sum_of_file(path: Path, kind: str = "sha256") -> str:
    if kind == "crc32c":
        return f"crc32c:{objects.crc32c_of_file(path)}"
    return f"sha256:{sha256_of(path)}"


def _sums_of(folder: Path | epath.Path) -> dict[str, tuple[int, str]]:
    """Size and checksum of all files of a checkpoint."""
    if is_bucket(folder):
        listed = objects.listing(str(folder))
        return {name: (stored.size, f"crc32c:{stored.crc32c}") for name, stored in listed.items()}
    sizes = _sizes(folder)
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(lambda name: _sum_of_file(Path(folder, name)), sizes)
        return {name: (size, sum_) for (name, size), sum_ in zip(sizes.items(), sums)}


def _sizes(folder: Path | epath.Path) -> dict[str, int]:
    """Size of all files of a checkpoint, by name."""
    if is_bucket(folder):
        return {name: stored.size for name, stored in objects.listing(str(folder)).items()}
    local = Path(folder)
    files = [path for path in sorted(local.rglob("*")) if path.is_file()]
    return {path.relative_to(local).as_posix(): path.stat().st_size for path in files}


def _is_summed(name: str, own: str) -> bool:
    """Whether a file is final when the checksums are written."""
    return name != _METADATA and not name.startswith(f"{own}/")


def _text_of(path: Path | epath.Path) -> str:
    """What a file says; in a bucket with patience."""
    if is_bucket(path):
        return objects.read(str(path)).decode()
    return path.read_text()


def told_of(folder: Path | epath.Path, item: str) -> dict[str, Any]:
    """An item of plain values, from the file that Orbax writes of it; {} where there is none."""
    try:
        return json.loads(_text_of(folder / item / item))
    except FileNotFoundError:
        return {}
