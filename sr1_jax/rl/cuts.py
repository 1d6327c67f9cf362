"""How the settings of the learner cut a batch into micro-batches: length buckets or packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sr1_jax.models.segments import Segments
from sr1_jax.rl.micro_batches import MicroBatch, plan_micro_batches, trained_bounds
from sr1_jax.rl.packing import plan_packed
from sr1_jax.rl.settings import row_lengths


def cut(
    mask_BT: np.ndarray, rows: np.ndarray, config: ml_collections.ConfigDict
) -> list[MicroBatch]:
    """Micro-batches of some rows of a batch.

    Args:
        mask_BT: nonzero on the tokens that train.
        rows: those to cut up.
        config: of the learner.

    Raises:
        ValueError: a trajectory is longer than learner.length_buckets, or learner.row_lengths, say.
    """
    if config.packing:
        return plan_packed(mask_BT, rows, size=config.micro_batch, lengths=row_lengths(config))
    return plan_micro_batches(mask_BT, rows, size=config.micro_batch, buckets=config.length_buckets)


def kinds_of_micro_batches(config: ml_collections.ConfigDict) -> list[MicroBatch]:
    """One micro-batch, made of shapes, of each kind that `cut` may make: each is a program."""
    of_rows = jax.ShapeDtypeStruct((config.micro_batch,), jnp.int32)
    if not config.packing:
        lengths = {length: of_rows for length in config.length_buckets}
    else:
        lengths = {
            length: Segments(*[jax.ShapeDtypeStruct((config.micro_batch, length), jnp.int32)] * 2)
            for length in row_lengths(config)
        }
    return [
        MicroBatch(rows, length, most)
        for length, rows in lengths.items()
        for most in trained_bounds(length)
    ]
