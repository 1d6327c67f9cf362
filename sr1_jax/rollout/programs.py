"""The jitted programs of the rollout engine: `extend`, `fork`, `decode`.

The device keeps the KV cache and nothing else: what a slot is up to is handed in with each call
and handed back. A slot's cache holds all of its tokens but the last, the pending one, which
is fed by the next call.

Slots are split over the batch axes of the mesh. Each program is written for the slots of one
part, numbered from 0 there, and run for all parts at once (`jax.shard_map`); weights and heads
stay split over `tensor` by the compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sr1_jax.models.cached_forward import forward_cached, next_token_logits
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.serving import KVCache, ServingParams, cache_placement
from sr1_jax.rollout.sampling import sample, slot_keys
from sr1_jax.sharding import RULES, compute_on

_BATCH = RULES["batch"]
_JITTED: list[Any] = []


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
    """What `decode` did.

    Attributes:
        tokens_SN: the first `count_S[s]` entries of row s are slot s's new tokens.
        logp_SN: their behaviour log-probabilities.
        count_S: see above.
        state_S: where the automaton stands.
        steps_P: for each part of the slots, how many steps the call took: the same number.
    """

    tokens_SN: jax.Array
    logp_SN: jax.Array
    count_S: jax.Array
    state_S: jax.Array
    steps_P: jax.Array


def _by_part(function: Callable, mesh: Mesh, *split: bool) -> Callable:
    """`function` run on each part of the slots; `split` says which arguments have parts."""

    def on_mesh(*arguments):
        with compute_on(mesh):
            return function(*arguments)

    specs = tuple(PartitionSpec(_BATCH) if part else PartitionSpec() for part in split)
    return jax.shard_map(
        on_mesh,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(_BATCH),
        axis_names=set(_BATCH),
        check_vma=False,
    )


def _program(*static: str, more_than_the_cache: bool = False) -> Callable:
    """Jits a function for each mesh it is called with.

    The cache is donated and handed back where it was: a program that is given one placed
    otherwise, if only by name, would be compiled again.
    """

    def decorate(function: Callable) -> Callable:
        @functools.cache
        def for_mesh(mesh: Mesh):
            where = cache_placement(mesh)
            jitted = jax.jit(
                functools.partial(function, mesh=mesh),
                static_argnames=static,
                donate_argnames="cache",
                out_shardings=(where, None) if more_than_the_cache else where,
            )
            _JITTED.append(jitted)
            return jitted

        @functools.wraps(function)
        def call(*arguments, mesh: Mesh, **settings):
            return for_mesh(mesh)(*arguments, **settings)

        call.for_mesh = for_mesh
        return call

    return decorate


@_program("decoder")
def extend(
    params: ServingParams,
    cache: KVCache,
    rows_R: jax.Array,
    ids_RC: jax.Array,
    positions_RC: jax.Array,
    *,
    decoder: DecoderConfig,
    mesh: Mesh,
) -> KVCache:
    """Appends known tokens (a prompt, an observation) to the caches of some slots.

    Args:
        params: of the policy.
        cache: donated.
        rows_R: slot of each row, within its part; a row of padding names a slot past the last.
        ids_RC: tokens, padded on the right.
        positions_RC: their positions; past the end of the cache where there is padding.
        decoder: shape of the policy.
        mesh: of `sharding.make_mesh`.
    """

    def part(params, cache, rows_R, ids_RC, positions_RC):
        return forward_cached(decoder, params, ids_RC, positions_RC, cache, rows_R)[1]

    run = _by_part(part, mesh, False, True, True, True, True)
    return run(params, cache, rows_R, ids_RC, positions_RC)


@_program("length")
def fork(
    cache: KVCache, source_R: jax.Array, target_R: jax.Array, *, length: int, mesh: Mesh
) -> KVCache:
    """Copies the first `length` positions of some slots to others.

    All sources are read before any target is written.

    Args:
        cache: donated.
        source_R: slots to read, within their part.
        target_R: slots to write, within the same part; past the last for a row of padding.
        length: positions.
        mesh: of `sharding.make_mesh`.
    """

    def part(cache, source_R, target_R):
        blocks = -(-length // cache.block)

        def copy_k(k_SKNEC):
            k_RKNEC = k_SKNEC[source_R, :, :blocks]
            return k_SKNEC.at[target_R, :, :blocks].set(k_RKNEC, mode="drop")

        def copy_v(v_SKXE):
            v_RKXE = v_SKXE[source_R, :, :length]
            return v_SKXE.at[target_R, :, :length].set(v_RKXE, mode="drop")

        return KVCache(tuple(map(copy_k, cache.k_SKNEC)), tuple(map(copy_v, cache.v_SKXE)))

    return _by_part(part, mesh, True, True, True)(cache, source_R, target_R)


@_program(
    "decoder", "steps", "temperature", "top_k", "top_p", "first_final", more_than_the_cache=True
)
def decode(
    params: ServingParams,
    cache: KVCache,
    rows_R: jax.Array | None,
    slots: Slots,
    least_running: jax.Array,
    next_state: jax.Array,
    seed_key: jax.Array,
    *,
    decoder: DecoderConfig,
    mesh: Mesh,
    steps: int,
    temperature: float,
    top_k: int,
    top_p: float,
    first_final: int,
) -> tuple[KVCache, Decoded]:
    """Samples up to `steps` tokens for every slot that is not idle.

    A slot stops at a final state of the automaton or when nothing is left of its budget. The
    call returns after `steps` steps, or as soon as no more than `least_running` slots are
    running: so the host can give the others something to do.

    Args:
        params: of the policy.
        cache: donated.
        rows_R: the slot of each row, within its part, where few slots run; a row of padding names
            a slot past the last, and is idle. None: row r is slot r.
        slots: see `Slots`, S = R.
        least_running: int32 scalar.
        next_state: int32 [states, V], the tag automaton.
        seed_key: random key of run and step.
        decoder: shape of the policy.
        mesh: of `sharding.make_mesh`.
        steps: most tokens a slot.
        temperature, top_k, top_p: see `sample`.
        first_final: automaton states from this one on are final.
    """
    cache_end = cache.positions

    def part(params, cache, rows_R, slots, least_running, next_state, seed_key):
        shape_SN = (slots.pending_S.shape[0], steps)

        def running(slots: Slots):
            return (slots.left_S > 0) & (slots.state_S < first_final)

        def running_anywhere(slots: Slots):
            return jax.lax.psum(running(slots).sum(), _BATCH)

        def go_on(carry):
            return (carry[0] < steps) & (carry[1] > least_running)

        def step(carry):
            index, _, cache, slots, tokens_SN, logp_SN = carry
            run_S = running(slots)
            position_S = jnp.where(run_S, slots.length_S, cache_end)
            hidden_DS1, cache = forward_cached(
                decoder, params, slots.pending_S[:, None], position_S[:, None], cache, rows_R
            )
            logits_VS = next_token_logits(decoder, params, hidden_DS1[..., 0])
            keys_S = slot_keys(seed_key, slots.stream_S2, slots.length_S + 1)
            token_S, logp_S = sample(
                logits_VS, keys_S, temperature=temperature, top_k=top_k, top_p=top_p
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
            return index + 1, running_anywhere(slots), cache, slots, tokens_SN, logp_SN

        start = (
            0, running_anywhere(slots), cache, slots,
            jnp.zeros(shape_SN, jnp.int32), jnp.zeros(shape_SN, jnp.float32),
        )  # fmt: skip
        count, _, cache, after, tokens_SN, logp_SN = jax.lax.while_loop(go_on, step, start)
        count_S = after.length_S - slots.length_S
        return cache, Decoded(
            tokens_SN, logp_SN, count_S, after.state_S, jnp.asarray(count, jnp.int32)[None]
        )

    run = _by_part(part, mesh, False, True, True, True, False, False, False)
    return run(params, cache, rows_R, slots, least_running, next_state, seed_key)


def compilations() -> int:
    """Programs compiled so far in this process."""
    return sum(program._cache_size() for program in _JITTED)
