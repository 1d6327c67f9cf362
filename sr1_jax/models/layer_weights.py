"""Which parameter of a layer is what, and in which order of axes: told once, for all readers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class LayerWeights(NamedTuple):
    """Parameters of one layer of a `decoder.Decoder`, as they are trained: inputs first.

    Attributes:
        attention_norm_D, ff_norm_D: scales of the norms before attention and feed-forward.
        q_DHE, k_DKE, v_DKE: projections to queries, keys and values.
        q_bias_HE, k_bias_KE, v_bias_KE: their biases; None without them.
        q_norm_E, k_norm_E: scales of the norms of each head; None without them.
        o_HED: projection of what was attended to.
        gate_DF, up_DF, down_FD: feed-forward, down(silu(gate(x)) · up(x)).
    """

    attention_norm_D: jax.Array
    q_DHE: jax.Array
    k_DKE: jax.Array
    v_DKE: jax.Array
    q_bias_HE: jax.Array | None
    k_bias_KE: jax.Array | None
    v_bias_KE: jax.Array | None
    q_norm_E: jax.Array | None
    k_norm_E: jax.Array | None
    o_HED: jax.Array
    ff_norm_D: jax.Array
    gate_DF: jax.Array
    up_DF: jax.Array
    down_FD: jax.Array


def layer_weights(params: Any) -> LayerWeights:
    """The parameters of a layer by their meaning.

    Args:
        params: state of a `decoder.Block`, without adapters.
    """
    attention, ff = params["attention"], params["ff"]

    def kernel(module: Any) -> jax.Array:
        return module["kernel"].get_value()

    def optional(name: str, part: str) -> jax.Array | None:
        there = name in attention and part in attention[name]
        return attention[name][part].get_value() if there else None

    return LayerWeights(
        attention_norm_D=params["attention_norm"]["scale"].get_value(),
        q_DHE=kernel(attention["q"]),
        k_DKE=kernel(attention["k"]),
        v_DKE=kernel(attention["v"]),
        q_bias_HE=optional("q", "bias"),
        k_bias_KE=optional("k", "bias"),
        v_bias_KE=optional("v", "bias"),
        q_norm_E=optional("q_norm", "scale"),
        k_norm_E=optional("k_norm", "scale"),
        o_HED=kernel(attention["o"]),
        ff_norm_D=params["ff_norm"]["scale"].get_value(),
        gate_DF=kernel(ff["gate"]),
        up_DF=kernel(ff["up"]),
        down_FD=kernel(ff["down"]),
    )
