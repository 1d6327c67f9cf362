"""The TPU compiler on a machine without a TPU, and what it says of a program."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sr1_jax.abstract import Program
from sr1_jax.chips import chip_of

INSTALL = "pip install libtpu"
# The two cores of a v4 chip work as one device, as they do where JAX finds the chip itself.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


class Memory(NamedTuple):
    """Bytes of one program on one device."""

    arguments: int
    temporaries: int
    output: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """What lives at the same time; donated arguments are their outputs."""
        return self.arguments + self.temporaries + self.output - self.aliased + self.code


class Compiled(NamedTuple):
    """What the compiler made of a program.

    Attributes:
        text: the final HLO, with cycle estimates.
        buffers: its buffer assignment.
        memory: None if it did not fit.
        seconds: of compilation.
        problem: why there is no program; "" if there is one.
    """

    text: str
    buffers: str
    memory: Memory | None
    seconds: float
    problem: str = ""


def topology_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU topology such as "v5e:8x8"; nothing need be attached.

    Raises:
        ValueError: an unknown topology.
        RuntimeError: the TPU compiler is not installed.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(f"The TPU compiler is not installed; get it with `{INSTALL}`.")
    from jax.experimental import topologies

    # Several plans may run at once, or beside a run: none of them touches a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    with _quiet(), _flags_it_knows():
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology, **_OPTIONS.get(topology.split(":")[0], {})
            )
        except jax.errors.JaxRuntimeError as error:
            message = str(error).splitlines()[0]
            if "INVALID_ARGUMENT" not in message:
                raise RuntimeError(f"The TPU compiler does not start: {message}") from error
            raise ValueError(
                f"topology {topology!r} is none the compiler knows: {message}"
            ) from error
    return found.devices


def compile_program(program: Program) -> Compiled:
    """Compiles for the devices of the program's shardings; what does not fit is no exception."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            with _quiet(), _flags_it_knows():
                compiled = program.lower().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            # Of the others there is still something to say.
            return Compiled("", "", None, time.perf_counter() - began, _shortage(str(error)))
        # `as_text` of the compiled program cannot write down every asynchronous collective.
        text = _read(folder, "*after_codegen.txt") or _read(folder, "*after_optimizations.txt")
        buffers = _read(folder, "*buffer-assignment.txt")
    stats = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    return Compiled(text or compiled.as_text(), buffers, memory, time.perf_counter() - began)


def _shortage(message: str) -> str:
    found = re.search(r"\(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", message)
    if found:
        return f"needs {found[1]}iB of {found[2]}iB by itself"
    found = re.search(r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", message)
    if found:
        return f"needs {found[1]}iB of {found[2]}iB by itself"
    return f"does not compile: {message.splitlines()[0][:300]}"


def _read(folder: str, pattern: str) -> str:
    files = sorted(Path(folder).glob(pattern), key=lambda path: path.stat().st_size)
    return files[-1].read_text() if files else ""


@contextlib.contextmanager
def _flags_it_knows() -> Iterator[None]:
    """XLA_FLAGS without those for CPUs and GPUs: one that libtpu does not know ends the process,
    without a word."""
    given = os.environ.get("XLA_FLAGS")
    if given is None:
        yield
        return
    others = ("--xla_cpu_", "--xla_gpu_")
    os.environ["XLA_FLAGS"] = " ".join(f for f in given.split() if not f.startswith(others))
    try:
        yield
    finally:
        os.environ["XLA_FLAGS"] = given


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps from stderr what the compiler says of the TPU host that this one is not."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
