"""Copies of an index elsewhere, as in a bucket, where nothing can be renamed: whole or not there.

`index.json`, which says what files there are, is the last that is written and the first that is
deleted: while it is there, all files are. What a copy that breaks off leaves is listed in
`.copying`, so that the next knows it for its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from etils import epath

from sr1_jax.retrieval.index_folder import MANIFEST_FILE

_BLOCK = 16 << 20
_COPYING = ".copying"


def check_target(text: str, name: str) -> epath.Path:
    """The folder that an index is to be copied to.

    Args:
        text: what was given; a path, or the address of a folder in a bucket.
        name: of the flag, for the message.

    Raises:
        ValueError: there is no way to it, or it holds something other than an index.
    """
    try:
        folder = epath.Path(text)
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        known = {MANIFEST_FILE, _COPYING, *_files_of(folder)}
    # Of a bucket any error of its library.
    except Exception as error:
        raise ValueError(f"{name}={text}: it cannot be read ({error!r}).") from error
    if foreign := sorted(names - known):
        raise ValueError(
            f"{name}={text} is not replaced: it holds {', '.join(foreign)}, which is of no index; "
            "name another folder, or empty it."
        )
    return folder


def copy_index(index: Path, target: epath.Path) -> None:
    """Copies an index to a folder; one that is there gives way.

    Args:
        index: complete.
        target: of `check_target`; made if need be.
    """
    names = sorted(json.loads((index / MANIFEST_FILE).read_text(encoding="utf-8"))["files"])
    stale = set(_files_of(target)) - set(names)
    target.mkdir(parents=True, exist_ok=True)
    (target / _COPYING).write_text(json.dumps(sorted({*names, *stale})))
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    for name in stale:
        (target / name).unlink(missing_ok=True)
    for name in [*names, MANIFEST_FILE]:
        with open(index / name, "rb") as source, (target / name).open("wb") as copy:
            shutil.copyfileobj(source, copy, _BLOCK)
    (target / _COPYING).unlink()


def _files_of(folder: epath.Path) -> list[str]:
    """What the index in a folder, or a copy that broke off, consists of, its manifest apart."""
    names: set[str] = set()
    for lists in (folder / MANIFEST_FILE, folder / _COPYING):
        if lists.exists():
            told = json.loads(lists.read_text())
            names |= set(told["files"] if lists.name == MANIFEST_FILE else told)
    return sorted(names)
