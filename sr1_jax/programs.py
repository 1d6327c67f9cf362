"""Compiled programs, kept between starts: what was compiled once is read from a folder afterwards.

JAX finds them again by a hash of the program, of its options and of the versions of compiler and
devices, so that programs of another version are never taken, only left lying. Of a cluster the
first process writes and all read: the folder should be one that all see, as that of a bucket.
Whoever may write there can have any code run by those who read.
"""

from __future__ import annotations

import contextlib
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from sr1_jax.cluster import is_first
from sr1_jax.settings import Setting

FOLDER = "programs"  # below a workdir
_WORKDIR = "workdir"
COMPILATION_CACHE = Setting(
    _WORKDIR,
    "folder of compiled programs, which a later start need not compile again: a path, also gs://…; "
    f"{_WORKDIR}: {FOLDER} below the workdir; empty: no programs are kept",
    free_on_resume=True,
)
# JAX's own variable, which comes before the default but not before what a config says.
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Smaller programs are sooner compiled than read.
_LEAST_SECONDS = 0.2
# The suffix that JAX gives them, and how those begin that zstandard has compressed, not zlib.
_ENTRIES, _ZSTD = "*-cache", b"\x28\xb5\x2f\xfd"


@contextlib.contextmanager
def kept_programs(setting: str, workdir: Path | None) -> Iterator[None]:
    """While open, programs that are compiled are kept, and those kept are not compiled again.

    Args:
        setting: compilation_cache of the config.
        workdir: of the run; None where there is none: then `workdir` stands for the user's cache.

    Raises:
        ValueError: nothing can be written to the folder, or it is that of a bucket to which there
            is no way from here.
    """
    folder = _folder(setting, workdir)
    if folder is not None and is_first():
        _check_writable(folder, setting)
        _drop_damaged(folder)
    before = {
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_persistent_cache_min_compile_time_secs": (
            jax.config.jax_persistent_cache_min_compile_time_secs
        ),
    }
    _use(folder, _LEAST_SECONDS)
    try:
        yield
    finally:
        _use(*before.values())


def _folder(setting: str, workdir: Path | None) -> str | None:
    """Where programs are kept; None: nowhere."""
    if setting != _WORKDIR:
        return setting or None
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE] or None
    if workdir is not None:
        return str(workdir / FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(cache) / "sr1_jax" / FOLDER)


def _use(folder: str | None, least_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    # JAX asks for its folder once in a process.
    compilation_cache.reset_cache()


def _check_writable(folder: str, setting: str) -> None:
    """JAX itself would only warn, of each program."""
    try:
        probe = epath.Path(folder) / f".probe-{uuid.uuid4().hex[:8]}"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    # Of a bucket any error of its library.
    except Exception as error:
        raise ValueError(
            f"compilation_cache={setting}: programs cannot be kept in {folder} "
            f"({type(error).__name__}: {error}). Name another folder, or '' to keep none."
        ) from error


def _drop_damaged(folder: str) -> None:
    """Deletes the newest program if a process was killed while it wrote it.

    JAX would find it each time, warn, and never write it again. In a bucket objects are whole.
    """
    if "://" in folder:
        return
    newest = max(Path(folder).glob(_ENTRIES), key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None and not _is_whole(newest.read_bytes()):
        newest.unlink()


def _is_whole(content: bytes) -> bool:
    if content.startswith(_ZSTD):
        try:
            import zstandard
        except ImportError:
            return True  # JAX had another library to compress with
        try:
            zstandard.ZstdDecompressor().decompress(content)
        except zstandard.ZstdError:
            return False
        return True
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True
