"""Weighted mixtures of sets, through Grain."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import grain
import numpy as np

from sr1_jax.data.prepared import QuestionIndex
from sr1_jax.data.selection import check_known


def mixed(index: QuestionIndex, seed: int, weights: Mapping[str, float]) -> grain.MapDataset:
    """Endless numbers of questions: each set in random order, epoch after epoch, in its share.

    Grain puts the sets together by a fixed pattern: of any n draws a set with the share s of the
    weights has n·s, but for a question or two; Grain rounds weights to hundredths of the least one.

    Args:
        index: of the questions.
        seed: of all orders; each set has its own, which does not depend on the others.
        weights: as in `group_weights`.

    Raises:
        ValueError: as `group_weights`.
    """
    parts, shares = [], []
    for name, weight in group_weights(index, weights).items():
        numbers_Q = np.flatnonzero(index.source_Q == index.sources.index(name))
        own_seed = zlib.crc32(f"{seed} {name}".encode())
        part = grain.MapDataset.source(numbers_Q.tolist())
        parts.append(part.seed(own_seed).shuffle().repeat())
        shares.append(weight)
    return grain.MapDataset.mix(parts, shares)


def group_weights(index: QuestionIndex, weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of each set that is drawn from, in the order of the index.

    Args:
        index: of the questions.
        weights: of every set that has questions, in any unit; a set of weight 0 is left out.

    Raises:
        ValueError: a set has no weight, or a weight has no set, or all are 0.
    """
    present = [name for n, name in enumerate(index.sources) if (index.source_Q == n).any()]
    check_known(list(weights), present, "data.weights")
    for name in present:
        if name not in weights:
            raise ValueError(
                f"data.weights has none for {name!r}: give every set a weight, 0 to leave it out; "
                f"the sets are {', '.join(present)}."
            )
    drawn = {name: float(weights[name]) for name in present if weights[name] > 0}
    if not drawn:
        raise ValueError("data.weights are all 0; give one set a weight above 0.")
    return drawn


def schedule(weights: Mapping[str, float]) -> grain.MapDataset:
    """Endless: the number of the set, in the order of `weights`, that each draw is from."""
    parts = [grain.MapDataset.source([number]).repeat() for number in range(len(weights))]
    return grain.MapDataset.mix(parts, list(weights.values()))
