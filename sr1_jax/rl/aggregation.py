"""From losses of tokens to the loss of a mini-batch: how much each token weighs.

A loss is a sum of weighted tokens, with weights that know the whole mini-batch. Its micro-batches
therefore add up to the same loss and the same gradient, whatever their sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

AGGREGATIONS = ("token", "sequence", "constant")


class Totals(NamedTuple):
    """Counts over a mini-batch; float32 scalars.

    Attributes:
        tokens: of mask 1.
        sequences: rows with at least one of them.
        favoured: tokens of mask 1 whose advantage is not negative.
        passed: tokens of mask 1 that pass the model; the others have no part in the gradient.
    """

    tokens: Float[Array, ""]
    sequences: Float[Array, ""]
    favoured: Float[Array, ""]
    passed: Float[Array, ""]


def count_totals(
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    advantages_BT: Float[Array, "B T"],
    passes_BT: Num[Array, "B T"] | None = None,
) -> Totals:
    """Counts of a mini-batch.

    Args:
        mask_BT: nonzero on tokens that train.
        advantages_BT: of each token.
        passes_BT: nonzero on those of them that pass the model; None: all do.
    """
    valid_BT = jnp.asarray(mask_BT) != 0
    passed_BT = valid_BT if passes_BT is None else passes_BT != 0
    counts = (
        valid_BT.sum(),
        valid_BT.any(axis=1).sum(),
        (valid_BT & (advantages_BT >= 0)).sum(),
        passed_BT.sum(),
    )
    return Totals(*(count.astype(jnp.float32) for count in counts))


def token_weights(
    mask_BT: Num[Array, "B T"] | Bool[Array, "B T"],
    aggregation: str,
    *,
    tokens: float | Float[Array, ""],
    sequences: float | Float[Array, ""],
    constant: float | None = None,
    sequence_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Weight of each token in the loss of a mini-batch.

    With N tokens of mask 1 in the mini-batch, S sequences that have any, and n in this one:

        token      1 / N        every token counts alike: DAPO (arXiv 2503.14476), equation 12
        sequence   1 / (S n)    every sequence counts alike: GRPO (arXiv 2402.03300), equation 3
        constant   1 / (S C)    a sum over tokens, without a length: Dr. GRPO (arXiv 2503.20783)

    A sequence without a token of mask 1 is as if it were not there.

    Args:
        mask_BT: nonzero on tokens that train; all of the mini-batch or some of its rows.
        aggregation: "token", "sequence" or "constant".
        tokens: N.
        sequences: S.
        constant: C > 0, in tokens; only for "constant".
        sequence_BT: of packed rows, see `sequence_sums`.

    Returns:
        weights_BT, float32, 0 on masked tokens.

    Raises:
        ValueError: an unknown aggregation, or "constant" without one.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {aggregation!r}; choose one of {list(AGGREGATIONS)}")
    valid_BT = (jnp.asarray(mask_BT) != 0).astype(jnp.float32)
    if aggregation == "token":
        return valid_BT / jnp.maximum(tokens, 1)
    per_sequence_BT = valid_BT / jnp.maximum(sequences, 1)
    if aggregation == "sequence":
        return per_sequence_BT / jnp.maximum(sequence_sums(valid_BT, sequence_BT), 1)
    if not constant:
        raise ValueError(f"aggregation 'constant' divides by a number of tokens, not {constant}")
    return per_sequence_BT / constant


def sequence_sums(
    x_BT: Float[Array, "B T"], sequence_BT: Int[Array, "B T"] | None = None
) -> Float[Array, "B T"] | Float[Array, "B 1"]:
    """Sum over the sequence of each token.

    Args:
        x_BT: any.
        sequence_BT: of packed rows, the sequence of each token, whose tokens follow each other;
            None: a row is a sequence.

    Returns:
        One number a row, or, packed, one a token.
    """
    if sequence_BT is None:
        return x_BT.sum(axis=1, keepdims=True)
    begins_BT = jnp.diff(sequence_BT, axis=1, prepend=sequence_BT[:, :1]) != 0

    def of_row(x_T, number_T):
        return jax.ops.segment_sum(x_T, number_T, num_segments=len(x_T))[number_T]

    # Numbered in each row, which stays on its device.
    return jax.vmap(of_row)(x_BT, jnp.cumsum(begins_BT, axis=1))


def weighted_sum(x_BT: Float[Array, "B T"], weights_BT: Float[Array, "B T"]) -> Float[Array, ""]:
    """Sum of x times weight; where the weight is 0, x does not matter."""
    return jnp.sum(jnp.where(weights_BT != 0, x_BT, 0.0) * jax.lax.stop_gradient(weights_BT))
