"""Small heads side by side in the rows of a KV cache.

A TPU's registers hold 128 numbers in a row, and so does its memory: rows of heads of 64 numbers
would be half padding. Two such heads share a row; where their number is odd, a row is padded
with zeros. A query is as wide as a row, and zero but for its own head's part.

Suffixes: R rows of a position, W numbers of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

LANES = 128


class Rows(NamedTuple):
    """How the heads of a position lie in rows.

    Attributes:
        together: heads in a row.
        width: numbers of a row, W.
    """

    together: int
    width: int


def rows_of_heads(heads: int, size: int) -> Rows:
    """The rows of a TPU for as many heads of `size` numbers on a device: whole registers."""
    together = LANES // size if LANES % size == 0 else 1
    if heads % max(together, 1) or together < 1:
        together = 1
    return Rows(together, -(-together * size // LANES) * LANES)


def to_rows(x_BTKE: Float[Array, "B T K E"], rows: int, width: int) -> Float[Array, "B T R W"]:
    """Keys or values of heads as rows."""
    x_BTRW = x_BTKE.reshape(*x_BTKE.shape[:2], rows, -1)
    return jnp.pad(x_BTRW, ((0, 0),) * 3 + ((0, width - x_BTRW.shape[-1]),))


def spread_queries(
    q_BKGTE: Float[Array, "B K G T E"], rows: int, width: int
) -> Float[Array, "B R Q T W"]:
    """Queries of all heads of a row, Q = K / R · G, each zero but for its head's part."""
    batch, heads, group, length, size = q_BKGTE.shape
    together = heads // rows
    own = jnp.eye(together, dtype=q_BKGTE.dtype)
    q = q_BKGTE.reshape(batch, rows, together, group, length, 1, size)
    q = q * own.reshape(1, 1, together, 1, 1, together, 1)
    q_BRQTW = q.reshape(batch, rows, together * group, length, together * size)
    return jnp.pad(q_BRQTW, ((0, 0),) * 4 + ((0, width - together * size),))


def own_parts(mixed_BRQTW: Float[Array, "B R Q T W"], heads: int, size: int):
    """Of what each query of `spread_queries` mixed, its own head's part: [B, K, G, T, E]."""
    batch, rows, queries, length, _ = mixed_BRQTW.shape
    together = heads // rows
    x = mixed_BRQTW[..., : together * size]
    x = x.reshape(batch, rows, together, queries // together, length, together, size)
    parts = [x[:, :, head, :, :, head] for head in range(together)]
    return jnp.stack(parts, axis=2).reshape(batch, heads, -1, length, size)
