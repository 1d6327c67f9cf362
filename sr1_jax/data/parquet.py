"""Rows of parquet files, in batches, through pyarrow (pip install 'sr1_jax[parquet]')."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_BATCH_ROWS = 1024


def read_batches(
    path: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Reads a parquet file batch by batch.

    Args:
        path: the file.
        columns: to read, of those that the file has; None: all.

    Returns:
        An iterator of (rows as plain Python values, share of the file read).

    Raises:
        FileNotFoundError, ImportError, ValueError: there is no such file, pyarrow is not installed,
            or the file is damaged (raised at once, the last also while iterating).
    """
    pyarrow, file = _open(path)
    known = columns and [name for name in columns if name in file.schema_arrow.names]

    def batches() -> Iterator[tuple[list[dict[str, Any]], float]]:
        done, total = 0, max(1, file.metadata.num_rows)
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=known):
                done += len(batch)
                yield batch.to_pylist(), done / total
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: damaged parquet file after row {done} ({_first_line(error)}); copy or "
                "download it again."
            ) from error

    return batches()


def column_names(path: Path) -> list[str]:
    """Names of the top-level columns. Errors as in `read_batches`."""
    return list(_open(path)[1].schema_arrow.names)


def _open(path: Path) -> tuple[Any, Any]:
    """The module pyarrow, and the file opened by it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .parquet file.")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading parquet needs pyarrow; pip install pyarrow.") from error
    try:
        return pyarrow, pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: not a parquet file, or damaged ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
