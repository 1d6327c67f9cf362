"""A run made of shapes: its models, its programs, and what of it stays in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import Program
from sr1_jax.evaluation.methods import rollout_config
from sr1_jax.models.decoder import Decoder, DecoderConfig, ValueModel
from sr1_jax.models.lora import without_adapters
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.settings import needs_critic
from sr1_jax.rollout.listing import rollout_programs
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.sharding import batch_parts, make_mesh
from sr1_jax.training.policies import decoder_config, lora_config
from sr1_jax.training.settings import check_config, check_mesh

ROLLOUT = ("merge", "reshard", "extend", "fork", "decode")


class Run(NamedTuple):
    """All that a run computes with, as shapes.

    Attributes:
        config: of the run.
        decoder: shape of the policy.
        mesh: of devices that need not be there.
        programs: every one a step may call.
        resident: what stays in the memory of the devices, a tree by name.
    """

    config: ml_collections.ConfigDict
    decoder: DecoderConfig
    mesh: Mesh
    programs: list[Program]
    resident: Mapping[str, Any]


def make_run(config: ml_collections.ConfigDict, devices: Sequence[Any]) -> Run:
    """The run of a config on these devices.

    Raises:
        ValueError: settings that cannot work, or that do not fit the devices; names the keys.
    """
    check_config(config, inputs=False)
    rollout = rollout_config(config, config.method)
    trajectories = config.questions * config.samples
    shape = dataclasses.replace(decoder_config(config), lora=lora_config(config))
    mesh = _mesh(config, shape, devices)
    check_mesh(config, mesh)
    SlotLayout(mesh, config.rollout.slots)  # refuses what hosts cannot share
    policy = nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0)))
    critic = None
    if needs_critic(config.learner):
        critic = nnx.eval_shape(lambda: ValueModel(shape, rngs=nnx.Rngs(0)))
    learner = Learner(
        policy,
        critic,
        config.learner,
        mesh,
        trajectories=trajectories,
        temperature=config.rollout.temperature,
    )
    state = learner.initial_state
    sampling = rollout_programs(
        policy if shape.lora is None else without_adapters(policy), rollout, mesh
    )
    served, cache, *_ = next(p for p in sampling if p.name.startswith("decode")).arguments
    resident = {
        "policy": state.policy.params,
        "policy optimizer": state.policy.opt_state,
        "reference": learner.reference,
        "rollout weights": served,
        "KV cache": cache,
    }
    if shape.lora is not None:
        # What rollouts start from, and updates do without.
        resident["merged"] = next(p for p in sampling if p.name == "reshard ends").arguments[0]
    if state.critic is not None:
        resident |= {"critic": state.critic.params, "critic optimizer": state.critic.opt_state}
    return Run(config, shape, mesh, sampling + learner.programs(), resident)


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on each device; what hosts keep does not count."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def chunk_bytes(run: Run) -> int:
    """The largest buffer with a vocabulary axis that a device should ever hold: float32 logits of
    `learner.chunk_tokens`, rounded up to whole rows; in rollouts, of one token a slot."""
    config = run.config
    parts = batch_parts(run.mesh)
    tokens = config.learner.chunk_tokens + config.learner.micro_batch // parts
    return 4 * run.decoder.vocab_size * max(tokens, config.rollout.slots // parts)


def beside(run: Run, program: str) -> dict[str, int]:
    """Bytes a device holds while a program runs, beyond what the program is given or makes.

    The training state stays through rollouts. Rollout weights, cache and, with adapters, the
    merged policy live as long as those.
    """
    kind, _, _ = program.partition(" ")
    held = {name: device_bytes(tree) for name, tree in run.resident.items()}
    if kind == "reshard":
        return _beside_reshard(run, program, held)
    away = {
        "merge": {"policy", "reference", "merged", "rollout weights", "KV cache"},
        "extend": {"rollout weights", "KV cache"},
        "decode": {"rollout weights", "KV cache"},
        "fork": {"KV cache"},
    }.get(kind)
    if away is None:
        away = {"merged", "rollout weights", "KV cache", *_given(run, program)}
    return {name: size for name, size in held.items() if name not in away}


def _given(run: Run, program: str) -> set[str]:
    """What a program of the learner is given of the training state."""
    kind, _, _ = program.partition(" ")
    if kind in ("prepare", "totals"):
        return set()
    if kind == "score":
        reference = set() if run.config.learner.kl_in == "none" else {"reference"}
        return {"policy", "critic"} | reference
    if program.endswith("apply"):
        return {kind, f"{kind} optimizer"}
    # The base under the adapters is given to an update too.
    adapters = run.decoder.lora is not None and "accumulate" in program
    return {kind} | ({"reference"} if adapters else set())


def _beside_reshard(run: Run, program: str, held: dict[str, int]) -> dict[str, int]:
    """Layers are moved first, one after the other to where those before it are already; then what
    is in none. A program is given, and makes, its own part of the policy and no more."""
    source = "policy" if run.decoder.lora is None else "merged"
    stack = device_bytes(run.resident[source]["trunk"]["layers"])
    layers = run.resident["rollout weights"].layers
    beside = {name: size for name, size in held.items() if name != "KV cache"}
    if program == "reshard layer":
        return beside | {source: held[source] - stack, "rollout weights": device_bytes(layers[1:])}
    return beside | {source: stack, "rollout weights": device_bytes(layers)}


def _mesh(config: ml_collections.ConfigDict, shape: DecoderConfig, devices: Sequence[Any]) -> Mesh:
    asked = config.mesh
    try:
        mesh = make_mesh(asked.data, asked.fsdp, asked.tensor, devices)
    except ValueError as error:
        tensor = max(
            size for size in (1, 2, 4, 8) if shape.kv_heads % size == 0 and len(devices) % size == 0
        )
        raise ValueError(
            f"{error} Set --config.mesh.data=1 --config.mesh.fsdp=-1 "
            f"--config.mesh.tensor={tensor}, for one: fsdp then takes the rest."
        ) from error
    return mesh
