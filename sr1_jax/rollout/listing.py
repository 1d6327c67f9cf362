"""Every program that a run of the engine may call, with shapes for arguments."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import Program, placed
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.serving import (
    KVCache,
    cache_placement,
    cache_shape,
    serve_ends,
    serve_layer,
    serving_params,
)
from sr1_jax.protocol.automaton import build_automaton
from sr1_jax.protocol.tags import SEARCH_TAGS
from sr1_jax.rollout import programs
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.program_keys import Decode, Extend, Fork, Reshard, programs_on_slots
from sr1_jax.sharding import named, serving_shardings, tree_shardings


def rollout_programs(
    policy: Decoder,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    *,
    stop_strings: Sequence[str] = SEARCH_TAGS.stop_tags,
) -> list[Program]:
    """The programs of `Engine.run`; computes nothing.

    Args:
        policy: of arrays or shapes; only its shapes are looked at.
        config: see `rollout.default_config`.
        mesh: of `sharding.make_mesh`; its devices need not be there.
        stop_strings: at which the policy hands over to the environment.

    Raises:
        ValueError: an axis of a parameter does not divide over the mesh, or slots do not divide
            over its devices.
    """
    params = nnx.state(policy)
    params = placed(params, tree_shardings(params, mesh))
    served = jax.eval_shape(
        lambda params: serving_params(policy.config, params, config.weights), params
    )
    served = placed(served, serving_shardings(served, mesh))
    cache = _cache(policy.config, config, mesh)
    weights = {"config": policy.config, "mesh": mesh, "weights": config.weights}
    stack, layer = params["trunk"]["layers"], jax.ShapeDtypeStruct((), jnp.int32)
    found = [
        Program(Reshard("layer"), serve_layer, (stack, layer), weights),
        Program(Reshard("ends"), serve_ends, (params,), weights),
    ]
    static = {"decoder": policy.config}
    sampling = _Sampling.of(policy.config, config, mesh, stop_strings)
    layout = SlotLayout(mesh, config.slots, config.decode_sizes)
    for key in programs_on_slots(config, layout, cache.positions):
        match key:
            case Extend(rows, columns):
                given = (_ints(mesh, rows), *[_ints(mesh, rows, columns)] * 2)
                extend = programs.extend.for_mesh(mesh)
                found.append(Program(key, extend, (served, cache, *given), static, rows * columns))
            case Fork(rows, length):
                given = (cache, *[_ints(mesh, rows)] * 2)
                found.append(Program(key, programs.fork.for_mesh(mesh), given, {"length": length}))
            case Decode(slots):
                given = (served, cache, *sampling.arguments(slots, config.slots, mesh))
                decode = programs.decode.for_mesh(mesh)
                found.append(Program(key, decode, given, static | sampling.settings, slots))
    return found


def _cache(decoder: DecoderConfig, config: ml_collections.ConfigDict, mesh: Mesh) -> KVCache:
    empty = functools.partial(
        KVCache.empty,
        decoder,
        config.slots,
        config.max_context_tokens,
        **cache_shape(decoder, mesh),
    )
    return KVCache(*map(placed, jax.eval_shape(empty), cache_placement(mesh)))


def _ints(mesh: Mesh, *shape: int) -> jax.ShapeDtypeStruct:
    """int32, split over the batch axes."""
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=named(mesh, "batch"))


class _Sampling(NamedTuple):
    """What decode programs are given beside weights and cache.

    Attributes:
        next_state: int32 [states, V] of the tag automaton.
        settings: static arguments.
    """

    next_state: jax.ShapeDtypeStruct
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        decoder: DecoderConfig,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        stop_strings: Sequence[str],
    ) -> _Sampling:
        # The automaton has as many states whatever the tokenizer.
        automaton = build_automaton([b"<"], [], stop_strings)
        shape = (len(automaton.next_state), decoder.vocab_size)
        return cls(
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=named(mesh)),
            {
                "steps": config.decode_steps,
                "temperature": float(config.temperature),
                "top_k": config.top_k,
                "top_p": float(config.top_p),
                "first_final": automaton.first_final,
            },
        )

    def arguments(self, slots: int, all_slots: int, mesh: Mesh) -> tuple[Any, ...]:
        """Those of a program for some or all of the slots."""
        streams = jax.ShapeDtypeStruct((slots, 2), jnp.uint32, sharding=named(mesh, "batch"))
        state = programs.Slots(*[_ints(mesh, slots)] * 4, streams)
        rows = None if slots == all_slots else _ints(mesh, slots)
        least_running = jax.ShapeDtypeStruct((), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return rows, state, least_running, self.next_state, key
