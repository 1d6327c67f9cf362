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
