"""Several sequences in one row: which token belongs to which, and where in it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np


class PackedSequences(NamedTuple):
    """What a model has to know of packed rows: attention stays within a sequence, and positions
    count from its first token.

    Attributes:
        id_BT: int32, the sequence of each token; its tokens follow each other. Padding has a
            number of its own.
        position_BT: int32, from 0 at the first token of each sequence.
    """

    id_BT: jax.Array | np.ndarray
    position_BT: jax.Array | np.ndarray


class TokenTrees(NamedTuple):
    """What a model has to know of rows that hold what sequences start with once.

    A row is a forest: a token's parent is the one before it in each sequence that it is part of,
    and tokens stand in depth-first order. Those that a token is before, in any sequence, are then
    the next ones up to some index, and a token sees itself and its ancestors: all t with
    t <= index < end[t].

    Attributes:
        position_BT: int32, of each token in its sequences.
        parent_BT: int32, index of its parent in the row; its own where it has none.
        end_BT: int32, index behind its last descendant. A token of padding ends after itself.
    """

    position_BT: jax.Array | np.ndarray
    parent_BT: jax.Array | np.ndarray
    end_BT: jax.Array | np.ndarray
