"""Compiled programs on disk: a plan that was cut short, or is asked another question, goes on from
what the compiler has said already."""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
from pathlib import Path

import jax

from sr1_jax.abstract import Program
from sr1_jax.planning.compiler import Compiled, Memory, compile_program


def compile_kept(program: Program, folder: Path) -> Compiled:
    """What `compile_program` makes of a program, from `folder` if it is there; else put there.

    A program is known by its text, its devices and the version of the compiler. What does not fit
    is kept, too: the answer would be the same.

    Args:
        program: to compile.
        folder: made if it is not there.
    """
    file = folder / f"{_key(program)}.json.gz"
    if file.is_file():
        with gzip.open(file, "rt") as stream:
            found = json.load(stream)
        found["memory"] = found["memory"] and Memory(*found["memory"])
        return Compiled(**found)
    compiled = compile_program(program)
    folder.mkdir(parents=True, exist_ok=True)
    # Under another name first: what is interrupted must not be taken for whole.
    unfinished = file.with_suffix(".unfinished")
    with gzip.open(unfinished, "wt") as stream:
        json.dump(compiled._asdict(), stream)
    unfinished.rename(file)
    return compiled


def _key(program: Program) -> str:
    devices = {
        (device.device_kind, device.id): None
        for leaf in jax.tree.leaves(program.arguments)
        if getattr(leaf, "sharding", None) is not None
        for device in leaf.sharding.mesh.devices.flat
    }
    said = [
        importlib.metadata.version("libtpu"),
        *(f"{kind} {number}" for kind, number in devices),
        program.lower().as_text(),
    ]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]
