"""Rematerialisation: what the backward pass finds in memory, and what it computes again.

By what is kept of a layer (bfloat16, a token): "full" 2·D bytes, its input; "attention" about
twice that; "narrow" what goes into attention and what comes out of its projection too,
2·(4·D + 2·K·E); "dots" the outputs of all products that the gradient reads, 2·(4·D + 2·K·E + 2·F);
"none" all that the gradient reads.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from sr1_jax.models.splash import CHECKPOINT_NAME
from sr1_jax.sharding import current_mesh

NARROW = "narrow"  # checkpoint name of what a layer computes outside the feed-forward layer

# Weights collected from all devices for a layer come back by these: kept, every device would
# hold the whole model.
_COLLECTED = ("sharding_constraint", "convert_element_type")

_keep = jax.checkpoint_policies
_attention = _keep.save_only_these_names(CHECKPOINT_NAME)


def _keep_computed(primitive, *_, **__) -> bool:
    return primitive.name not in _COLLECTED


# Name -> policy of `jax.checkpoint`.
REMAT_POLICIES: dict[str, Callable] = {
    "none": _keep_computed,
    "dots": _keep.save_from_both_policies(_keep.dots_with_no_batch_dims_saveable, _attention),
    "narrow": _keep.save_only_these_names(CHECKPOINT_NAME, NARROW),
    "attention": _attention,
    "full": _keep.nothing_saveable,
}


def rematerialised(layer: Callable, name: str) -> Callable:
    """The layer, to be scanned, under a policy of `REMAT_POLICIES`.

    "attention" keeps the output of the attention kernel on TPUs, so that the backward pass does
    not run its forward pass again; elsewhere it is the same as "full".
    """
    if name == "none" and current_mesh() is None:
        return layer
    # Inside a scan nothing can be merged with the forward pass anyway.
    return jax.checkpoint(layer, policy=REMAT_POLICIES[name], prevent_cse=False)
