"""Vectors of passages as they are kept: float32, bfloat16, or int8 with a scale a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np

DTYPES = ("float32", "bfloat16", "int8")


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The vectors of a corpus, read a few rows at a time.

    Attributes:
        count: N, of passages.
        width: D.
        dtype: of `DTYPES`.
        rows: (first, last) gives those rows [n, D] in that dtype.
        scales: (first, last) gives what those rows are multiplied with, float32 [n]; None but for
            int8.
    """

    count: int
    width: int
    dtype: str
    rows: Callable[[int, int], np.ndarray]
    scales: Callable[[int, int], np.ndarray] | None = None

    @classmethod
    def of(cls, values_ND: np.ndarray, scale_N: np.ndarray | None = None) -> Vectors:
        """Those of arrays, mapped from a file or not."""
        scales = None if scale_N is None else lambda first, last: scale_N[first:last]
        return cls(
            *values_ND.shape,
            str(values_ND.dtype),
            lambda first, last: values_ND[first:last],
            scales,
        )

    def float32(self, first: int, last: int) -> np.ndarray:
        """Rows as numbers: [n, D] float32."""
        values_nD = np.asarray(self.rows(first, last), np.float32)
        return values_nD if self.scales is None else values_nD * self.scales(first, last)[:, None]


def as_dtype(vector_ND: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors in the dtype that they are kept in, and the scale of each where it is int8.

    An int8 row is its numbers over their largest absolute value, times 127, rounded: each is off by
    at most half a step, that is 1/254 of the largest.

    Args:
        vector_ND: float32, finite.
        dtype: of `DTYPES`.

    Returns:
        values [N, D] and, for int8, scales [N] float32 with values * scale ≈ vector; None for the
        others.
    """
    if dtype != "int8":
        target = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
        return vector_ND.astype(target), None
    scale_N = np.abs(vector_ND).max(axis=1, initial=0).astype(np.float32) / 127
    safe_N1 = np.where(scale_N > 0, scale_N, 1)[:, None]  # a row of zeros stays one
    return np.rint(vector_ND / safe_N1).astype(np.int8), scale_N
