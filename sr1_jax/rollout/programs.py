"""The jitted programs of the rollout engine.

The device keeps the KV cache and nothing else: what a slot is up to is handed in with each call
and handed back. A slot's cache holds all of its tokens but the last, the pending one, which
is fed by the next call.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sr1_jax.models.decoder import KVCache
from sr1_jax.rollout.sampling import sample, slot_keys


class Slots(NamedTuple):
    """What `decode` has to know of each slot.

    Attributes:
        pending_S: int32, token to feed next.
        length_S: int32, tokens in the cache; the pending token stands at this position.
        state_S: int32, state of the tag automaton.
        left_S: int32, tokens the slot may still sample; 0 for an idle slot.
        stream_S2: uint32, question and sample as random-stream numbers.
    """

    pending_S: jax.Array
    length_S: jax.Array
    state_S: jax.Array
    left_S: jax.Array
    stream_S2: jax.Array


class Decoded(NamedTuple):
    """What `decode` did: the first `count_S[s]` entries of row s are slot s's new tokens."""

    tokens_SN: jax.Array
    logp_SN: jax.Array
    count_S: jax.Array
    state_S: jax.Array


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def extend(
    params: nnx.State,
    cache: KVCache,
    rows_R: jax.Array,
    ids_RC: jax.Array,
    positions_RC: jax.Array,
    *,
    graph: nnx.GraphDef,
) -> KVCache:
    """Appends known tokens (a prompt, an observation) to the caches of some slots.

    Args:
        params: of the policy.
        cache: donated.
        rows_R: slot of each row; a row of padding names a slot past the last.
        ids_RC: tokens, padded on the right.
        positions_RC: their positions; past the end of the cache where there is padding.
        graph: definition of the policy.
    """
    model = nnx.merge(graph, params)
    _, cache = model.trunk.cached(ids_RC, positions_RC, cache, rows_R, last_norm=False)
    return cache


@functools.partial(
    jax.jit,
    static_argnames=("graph", "steps", "temperature", "top_k", "top_p", "first_final"),
    donate_argnames="cache",
)
def decode(
    params: nnx.State,
    cache: KVCache,
    slots: Slots,
    next_state: jax.Array,
    seed_key: jax.Array,
    *,
    graph: nnx.GraphDef,
    steps: int,
    temperature: float,
    top_k: int,
    top_p: float,
    first_final: int,
) -> tuple[KVCache, Decoded]:
    """Samples up to `steps` tokens for every slot that is not idle.

    A slot stops at a final state of the automaton or when nothing is left of its budget; the
    call returns when all have stopped.

    Args:
        params: of the policy.
        cache: donated.
        slots: see `Slots`.
        next_state: int32 [states, V], the tag automaton.
        seed_key: random key of run and step.
        graph: definition of the policy.
        steps: most tokens a slot.
        temperature, top_k, top_p: see `sample`.
        first_final: automaton states from this one on are final.
    """
    model = nnx.merge(graph, params)
    cache_end = cache.k_LSXKE.shape[2]
    shape_SN = (slots.pending_S.shape[0], steps)

    def running(slots: Slots):
        return (slots.left_S > 0) & (slots.state_S < first_final)

    def go_on(carry):
        return (carry[0] < steps) & jnp.any(running(carry[2]))

    def step(carry):
        index, cache, slots, tokens_SN, logp_SN = carry
        run_S = running(slots)
        position_S = jnp.where(run_S, slots.length_S, cache_end)
        hidden_S1D, cache = model.trunk.cached(slots.pending_S[:, None], position_S[:, None], cache)
        logits_SV = model.logits(hidden_S1D[:, 0]).astype(jnp.float32)
        keys_S = slot_keys(seed_key, slots.stream_S2, slots.length_S + 1)
        token_S, logp_S = sample(
            logits_SV, keys_S, temperature=temperature, top_k=top_k, top_p=top_p
        )
        advance_S = run_S.astype(jnp.int32)
        slots = slots._replace(
            pending_S=jnp.where(run_S, token_S, slots.pending_S),
            length_S=slots.length_S + advance_S,
            state_S=jnp.where(run_S, next_state[slots.state_S, token_S], slots.state_S),
            left_S=slots.left_S - advance_S,
        )
        tokens_SN = tokens_SN.at[:, index].set(jnp.where(run_S, token_S, 0))
        logp_SN = logp_SN.at[:, index].set(jnp.where(run_S, logp_S, 0.0))
        return index + 1, cache, slots, tokens_SN, logp_SN

    _, cache, after, tokens_SN, logp_SN = jax.lax.while_loop(
        go_on,
        step,
        (0, cache, slots, jnp.zeros(shape_SN, jnp.int32), jnp.zeros(shape_SN, jnp.float32)),
    )
    count_S = after.length_S - slots.length_S
    return cache, Decoded(tokens_SN, logp_SN, count_S, after.state_S)


def compilations() -> int:
    """Programs compiled so far in this process."""
    return extend._cache_size() + decode._cache_size()
