"""A run made of shapes: its models, its programs, and what of it stays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from sr1_jax.abstract import Program
from sr1_jax.evaluation.methods import method_environment, rollout_config
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.lora import without_adapters
from sr1_jax.retrieval.listing import Embed, IndexShape, Search, dense_programs
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.program_keys import Accumulate, Apply, Merge, Score, Zeros
from sr1_jax.rollout.listing import rollout_programs
from sr1_jax.rollout.program_keys import Decode, Extend, Fork, Reshard
from sr1_jax.sharding import batch_parts, make_mesh
from sr1_jax.training.checks import check_config, check_mesh
from sr1_jax.training.learning import abstract_models, make_abstract_learner
from sr1_jax.training.policies import decoder_config

# What stays in the memory of the devices between programs.
POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"
OPTIMIZERS = {POLICY: "policy optimizer", CRITIC: "critic optimizer"}
SERVED, CACHE, MERGED = "rollout weights", "KV cache", "merged"
INDEX, ENCODER = "dense index", "query encoder"

# Programs of rollouts; all others are the learner's.
ROLLOUT = (Merge, Reshard, Extend, Fork, Decode, Search, Embed)


class Run(NamedTuple):
    """All that a run computes with, as shapes.

    Attributes:
        config: of the run.
        policy: its shape.
        critic: its shape; None without one.
        mesh: of devices that need not be there.
        programs: every one a step may call.
        resident: what stays in the memory of the devices, a tree by name.
        index: the dense index that the devices share; None without one.
    """

    config: ml_collections.ConfigDict
    policy: DecoderConfig
    critic: DecoderConfig | None
    mesh: Mesh
    programs: list[Program]
    resident: Mapping[str, Any]
    index: IndexShape | None = None


def make_run(
    config: ml_collections.ConfigDict, devices: Sequence[Any], index: IndexShape | None = None
) -> Run:
    """The run of a config on these devices.

    Args:
        config: of the run.
        devices: of all processes; they need not be there.
        index: a dense index that they share, with the settings retrieval.dense.

    Raises:
        ValueError: settings that cannot work, or that do not fit the devices; names the keys.
    """
    check_config(config, inputs=False)
    mesh = _mesh(config, devices)
    check_mesh(config, mesh)
    policy, critic = abstract_models(config)
    learner = make_abstract_learner(config, mesh)
    sampling = rollout_programs(
        policy if policy.config.lora is None else without_adapters(policy),
        rollout_config(config, config.method),
        mesh,
        stop_strings=method_environment(config, None, config.method, None).tags.stop_tags,
    )
    resident = _resident(learner, sampling, adapted=policy.config.lora is not None)
    retrieval: list[Program] = []
    if index is not None:
        if config.retrieval.dense.search.faiss:
            raise ValueError(
                f"retrieval.dense.search.faiss={config.retrieval.dense.search.faiss}: the hosts "
                "keep and search that index, so there is nothing to plan; drop --index, or clear "
                "the setting."
            )
        listed = dense_programs(index, config.retrieval.dense, config.rollout.passages, devices)
        retrieval, resident = (
            listed.programs,
            resident
            | {
                INDEX: listed.vectors,
                ENCODER: listed.encoder,
            },
        )
    return Run(
        config,
        policy.config,
        None if critic is None else critic.config,
        mesh,
        sampling + retrieval + learner.programs(),
        resident,
        index,
    )


def _resident(learner: Learner, sampling: list[Program], *, adapted: bool) -> dict[str, Any]:
    by_type = {type(program.key): program for program in sampling}
    served, cache, *_ = by_type[Decode].arguments
    state = learner.abstract_state
    resident = {
        POLICY: state.policy.params,
        OPTIMIZERS[POLICY]: state.policy.opt_state,
        REFERENCE: learner.reference,
        SERVED: served,
        CACHE: cache,
    }
    if adapted:
        # What rollouts start from, and updates do without.
        ends = next(program for program in sampling if program.key == Reshard("ends"))
        resident[MERGED] = ends.arguments[0]
    if state.critic is not None:
        resident |= {CRITIC: state.critic.params, OPTIMIZERS[CRITIC]: state.critic.opt_state}
    return resident


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on each device; what hosts keep does not count."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def processes_of(mesh: Mesh) -> int:
    """Hosts of the devices of a mesh."""
    return len({device.process_index for device in mesh.devices.flat})


def chunk_bytes(run: Run) -> int:
    """The largest buffer with a vocabulary axis that a device should ever hold: float32 logits of
    `learner.chunk_tokens`, rounded up to whole rows; in rollouts, of one token a slot."""
    config = run.config
    parts = batch_parts(run.mesh)
    tokens = config.learner.chunk_tokens + config.learner.micro_batch // parts
    return 4 * run.policy.vocab_size * max(tokens, config.rollout.slots // parts)


def also_held(run: Run, key: Any) -> dict[str, int]:
    """Bytes a device holds while a program runs, beyond what the program is given or makes.

    The training state stays through rollouts. Rollout weights, cache and, with adapters, the
    merged policy live as long as those.

    Args:
        run: of the program.
        key: of the program.
    """
    held = {name: device_bytes(tree) for name, tree in run.resident.items()}
    if isinstance(key, Reshard):
        return _held_while_moved(run, key, held)
    own = _own(run, key)
    return {name: size for name, size in held.items() if name not in own}


def _own(run: Run, key: Any) -> set[str]:
    """What a program is given or makes, and what there is not while it runs."""
    rollouts = {MERGED, SERVED, CACHE}
    match key:
        case Merge():
            return {POLICY, REFERENCE} | rollouts
        case Extend() | Decode():
            return {SERVED, CACHE}
        case Fork():
            return {CACHE}
        case Search():
            return {INDEX}
        case Embed():
            return {ENCODER}
        case Score():
            with_reference = run.config.learner.kl_in != "none"
            return {POLICY, CRITIC} | ({REFERENCE} if with_reference else set()) | rollouts
        case Apply(model):
            return {model, OPTIMIZERS[model]} | rollouts
        case Accumulate(model):
            # The base under the adapters is given to an update too.
            adapted = run.policy.lora is not None
            return {model} | ({REFERENCE} if adapted else set()) | rollouts
        case Zeros(model):
            return {model} | rollouts
    return rollouts


def _held_while_moved(run: Run, key: Reshard, held: dict[str, int]) -> dict[str, int]:
    """Layers are moved first, one after the other to where those before it are already; then what
    is in none. A program is given, and makes, its own part of the policy and no more."""
    source = POLICY if run.policy.lora is None else MERGED
    stack = device_bytes(run.resident[source]["trunk"]["layers"])
    layers = run.resident[SERVED].layers
    others = {name: size for name, size in held.items() if name != CACHE}
    if key == Reshard("layer"):
        return others | {source: held[source] - stack, SERVED: device_bytes(layers[1:])}
    return others | {source: stack, SERVED: device_bytes(layers)}


def _mesh(config: ml_collections.ConfigDict, devices: Sequence[Any]) -> Mesh:
    asked = config.mesh
    try:
        return make_mesh(asked.data, asked.fsdp, asked.tensor, devices)
    except ValueError as error:
        heads, count = decoder_config(config).kv_heads, len(devices)
        tensor = max(n for n in (1, 2, 4, 8) if heads % n == 0 and count % n == 0)
        raise ValueError(
            f"{error} Set --config.mesh.data=1 --config.mesh.fsdp=-1 "
            f"--config.mesh.tensor={tensor}, for one: fsdp then takes the rest."
        ) from error
