"""Every program that a run of the engine may call, with shapes for arguments."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import Program, placed
from sr1_jax.models.decoder import Decoder
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
from sr1_jax.rollout.device_slots import fork_lengths
from sr1_jax.rollout.lockstep import row_counts
from sr1_jax.sharding import RULES, named, serving_shardings, tree_shardings


def rollout_programs(
    policy: Decoder, config: ml_collections.ConfigDict, mesh: Mesh
) -> list[Program]:
    """The programs of `Engine.run`; computes nothing.

    Args:
        policy: of arrays or shapes; only its shapes are looked at.
        config: see `rollout.default_config`.
        mesh: of `sharding.make_mesh`; its devices need not be there.

    Raises:
        ValueError: an axis of a parameter does not divide over the mesh.
    """
    params = nnx.state(policy)
    params = placed(params, tree_shardings(params, mesh))
    served = jax.eval_shape(
        lambda params: serving_params(policy.config, params, config.weights), params
    )
    served = placed(served, serving_shardings(served, mesh))
    empty = functools.partial(
        KVCache.empty,
        policy.config,
        config.slots,
        config.max_context_tokens,
        **cache_shape(policy.config, mesh),
    )
    cache = jax.eval_shape(empty)
    cache = KVCache(*map(placed, cache, cache_placement(mesh)))
    static = {"decoder": policy.config}
    layout = {"config": policy.config, "mesh": mesh, "weights": config.weights}
    batch = named(mesh, "batch")
    parts = functools.reduce(lambda product, axis: product * mesh.shape[axis], RULES["batch"], 1)

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch)

    stack, layer = params["trunk"]["layers"], jax.ShapeDtypeStruct((), jnp.int32)
    found = [
        Program("reshard layer", serve_layer, (stack, layer), layout),
        Program("reshard ends", serve_ends, (params,), layout),
    ]
    for per_part in row_counts(config.slots // parts):
        rows = per_part * parts
        found += [
            Program(
                f"extend {rows}×{columns}",
                programs.extend.for_mesh(mesh),
                (served, cache, ints(rows), ints(rows, columns), ints(rows, columns)),
                static,
                rows * columns,
            )
            for columns in config.extend_buckets
        ]
        found += [
            Program(
                f"fork {rows}×{length}",
                programs.fork.for_mesh(mesh),
                (cache, ints(rows), ints(rows)),
                {"length": length},
            )
            for length in fork_lengths(cache.positions)
        ]
    # The states of the automaton are those of the tags, whatever the tokenizer.
    automaton = build_automaton([b"<"], [], SEARCH_TAGS.stop_tags)
    states = len(automaton.next_state)
    slots = programs.Slots(
        *(ints(config.slots) for _ in range(4)),
        jax.ShapeDtypeStruct((config.slots, 2), jnp.uint32, sharding=batch),
    )
    next_state = jax.ShapeDtypeStruct(
        (states, policy.config.vocab_size), jnp.int32, sharding=named(mesh)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    least_running = jax.ShapeDtypeStruct((), jnp.int32)
    sampling = {"temperature": float(config.temperature), "top_k": config.top_k}
    found.append(
        Program(
            f"decode {config.slots}",
            programs.decode.for_mesh(mesh),
            (served, cache, None, slots, least_running, next_state, key),
            static
            | sampling
            | {
                "steps": config.decode_steps,
                "top_p": float(config.top_p),
                "first_final": automaton.first_final,
            },
            config.slots,
        )
    )
    return found
