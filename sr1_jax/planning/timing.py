"""How long a program takes, and what it would have to compute and read at least."""

from __future__ import annotations

import dataclasses

from sr1_jax.abstract import Program
from sr1_jax.chips import Chip
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.encoder import EncoderConfig
from sr1_jax.planning.costs import Costs
from sr1_jax.planning.run import CACHE, POLICY, SERVED, Run, device_bytes, processes_of
from sr1_jax.planning.step import Assumptions
from sr1_jax.retrieval.listing import Embed, Search
from sr1_jax.rl.program_keys import Accumulate, Score
from sr1_jax.rollout.program_keys import Decode, Extend
from sr1_jax.sharding import batch_parts


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one call on a device.

    Attributes:
        compute, memory: at the chip's peak rates.
        cycles: by the compiler's estimates; what it gives none for, at the peak rates.
        network: all collectives.
        blocking: those that nothing runs beside.
        waiting: what of the others takes longer than what runs until they have to be there.
    """

    compute: float
    memory: float
    cycles: float
    network: float
    blocking: float
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        """The larger of peak rates and the compiler's estimates, and collectives where they are
        in the way."""
        core = max(self.compute, self.memory, self.cycles)
        return max(core + self.blocking + self.waiting, self.network)

    @property
    def limit(self) -> str:
        """The largest part of it."""
        parts = {
            "compute": self.compute,
            "memory": self.memory,
            "cycles": self.cycles,
            "network": self.network,
        }
        return max(parts, key=parts.get)


def time_of(costs: Costs, chip: Chip) -> Time:
    """Seconds of a program on one device of a chip."""

    def seconds(cycles: float, uncounted_bytes: float, uncounted_flops: float) -> float:
        return cycles / chip.clock + max(
            uncounted_bytes / chip.bandwidth, uncounted_flops / chip.flops
        )

    waiting = sum(
        times * max(0.0, sent / chip.ring - seconds(*meanwhile))
        for (sent, *meanwhile), times in costs.overlaps.items()
    )
    return Time(
        compute=costs.flops / chip.flops,
        memory=costs.bytes / chip.bandwidth,
        cycles=seconds(costs.cycles, costs.uncounted_bytes, costs.uncounted_flops),
        network=sum(costs.collectives.values()) / chip.ring,
        blocking=costs.blocking / chip.ring,
        waiting=waiting,
    )


def needed_flops(run: Run, program: Program, assumed: Assumptions) -> float:
    """FLOPs a device needs for the positions a program is given, without rematerialisation.

    2 a parameter of the layers and position; 2·V·D a position that passes the head; and causal
    attention, 2·2·H·E a position and one it sees (Kaplan et al. 2020, section 2.1, with the
    context's share). Twice as much again for the gradient. A search multiplies each query with each
    vector.
    """
    learner, tokens = run.config.learner, program.tokens

    def seen(length: int) -> float:
        """Positions that a token of a row sees: of packed rows, of its episode."""
        return (assumed.length if learner.packing else length) / 2

    match program.key:
        case Decode():
            flops = _trunk(run.policy, tokens, assumed.filled) + _head(run.policy, tokens)
        case Extend():
            flops = _trunk(run.policy, tokens, assumed.length / 2)
        case Score(length, trained):
            passes = (learner.old_logp == "trainer") + (learner.kl_in != "none")
            head = _head(run.policy, learner.micro_batch * trained)
            flops = passes * (_trunk(run.policy, tokens, seen(length)) + head)
            if run.critic is not None:
                flops += _trunk(run.critic, tokens, seen(length))
        case Accumulate(model, length, trained):
            shape = run.policy if model == POLICY else run.critic
            flops = _trunk(shape, tokens, seen(length))
            if model == POLICY:
                flops += _head(shape, learner.micro_batch * trained)
            flops *= 3
        case Search(batch):
            flops = 2.0 * run.index.passages * run.index.width * batch
        case Embed(_, length):
            # By each process for itself.
            flops = processes_of(run.mesh) * _encoder(run.index.encoder, tokens, length)
        case _:
            flops = 0.0
    return flops / run.mesh.devices.size


def _trunk(shape: DecoderConfig, tokens: int, seen: float) -> float:
    """FLOPs of all layers for tokens of which each sees so many positions."""
    heads = shape.heads + 2 * shape.kv_heads
    matrices = shape.width * (heads + shape.heads) * shape.head_dim
    matrices += 3 * shape.width * shape.ff_width
    pair = 4.0 * shape.heads * shape.head_dim
    return shape.layers * tokens * (2.0 * matrices + pair * seen)


def _encoder(shape: EncoderConfig, tokens: int, length: int) -> float:
    """FLOPs of all layers of an encoder, whose tokens see all of their text."""
    matrices = 4 * shape.width**2 + 2 * shape.width * shape.ff_width
    return shape.layers * tokens * (2.0 * matrices + 4.0 * shape.width * length)


def _head(shape: DecoderConfig, tokens: int) -> float:
    return 2.0 * shape.vocab_size * shape.width * tokens


def decode_traffic(run: Run, assumed: Assumptions) -> tuple[float, float]:
    """Bytes of weights, and of the cache that is in use, that a decode step has to read on a
    device."""
    served = run.resident[SERVED]
    weights = device_bytes(served)
    if not run.policy.tied_embeddings:
        table = served.embed_VD
        rows = table.sharding.shard_shape(table.shape)[0]
        slots = run.config.rollout.slots // batch_parts(run.mesh)
        # Of the embedding only the rows of the tokens are read.
        weights -= device_bytes(table) * (1 - min(1.0, slots / rows))
    cache = device_bytes(run.resident[CACHE])
    return weights, cache * assumed.filled / run.config.rollout.max_context_tokens
