"""The folder of a search index: complete or not there, and never another's.

`index.json`, written last, names the format, its version, how the index was made and the size of
every file. A folder without it, or whose files do not match it, is refused.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST_FILE = "index.json"
MEMORY_FILE = ".remembered.json"
# The "format" of a dense index; here, so that it can be told from others without JAX.
DENSE_FORMAT = "sr1_jax.dense"


def memory_of(index_dir: Path) -> Path:
    """The file beside an index in which hashes of corpora are remembered."""
    return index_dir.parent / MEMORY_FILE


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Completes an index: records `fields` and the size in bytes of every file in `folder`."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {**fields, "files": sizes}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def read_manifest(index_dir: Path, *, kind: str, version: int) -> dict[str, Any]:
    """Reads and checks the manifest of a complete index.

    Args:
        index_dir: the folder.
        kind: what its "format" must say.
        version: what its "version" must say.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is not an index of this kind and version, or files of it are missing
            or cut short.
    """
    advice = "build it with python -m sr1_jax.index --corpus=FILE.jsonl --index=DIR"
    if not index_dir.exists():
        raise FileNotFoundError(f"{index_dir}: no such index; {advice}.")
    manifest = _parse_manifest(index_dir)
    if manifest is None or manifest.get("format") != kind:
        raise ValueError(f"{index_dir} is not a complete {kind} index; {advice}.")
    if manifest.get("version") != version:
        raise ValueError(
            f"{index_dir} has index version {manifest.get('version')}, this program reads "
            f"version {version}; build it again."
        )
    for name, size in manifest["files"].items():
        path = index_dir / name
        found = path.stat().st_size if path.is_file() else "none"
        if found != size:
            raise ValueError(
                f"{index_dir} is damaged: {name} should have {size} bytes, found {found}; "
                "build the index again."
            )
    return manifest


def format_of(index_dir: Path) -> str | None:
    """The "format" of the index in a folder; None where there is none."""
    manifest = _parse_manifest(index_dir)
    return None if manifest is None else manifest.get("format")


def check_replaceable(index_dir: Path, *, kind: str) -> None:
    """Refuses to let an index of `kind` take the place of anything but its like.

    Raises:
        ValueError: `index_dir` is a file, or a folder that holds something other than one index
            of this kind.
    """
    if not index_dir.exists():
        return
    if not index_dir.is_dir():
        raise ValueError(f"{index_dir} is a file; name a folder for the index.")
    names = {path.name for path in index_dir.iterdir()}
    if not names:
        return
    manifest = _parse_manifest(index_dir)
    if manifest is None or manifest.get("format") != kind:
        raise ValueError(
            f"{index_dir} is not empty and not a {kind} index, so it is not replaced; "
            "name another folder."
        )
    foreign = sorted(names - set(manifest["files"]) - {MANIFEST_FILE})
    if foreign:
        raise ValueError(
            f"{index_dir} is not replaced: besides the index it holds {', '.join(foreign)}; "
            "move that away or name another folder."
        )


@contextmanager
def new_folder(index_dir: Path) -> Iterator[Path]:
    """A temporary sibling of `index_dir` that takes its place when the block succeeds.

    When the block fails the sibling is removed and `index_dir` stays as it was. Programs that
    have the old files mapped keep them.
    """
    target = index_dir.resolve()
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.building")
    building.mkdir(parents=True)
    try:
        yield building
        put_in_place(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def put_in_place(building: Path, index_dir: Path) -> None:
    """Gives a complete index its name; an index that is there gives way, or stays if this fails."""
    target = index_dir.resolve()
    replaced = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.replaced")
    try:
        if target.exists():
            os.rename(target, replaced)
        os.rename(building, target)
    except BaseException:
        if replaced.exists() and not target.exists():
            os.rename(replaced, target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _parse_manifest(index_dir: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((index_dir / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return None
    return manifest
