"""How long a training step takes: which program is called how often, and for how long."""

from __future__ import annotations

import dataclasses
import math

from sr1_jax.abstract import Program
from sr1_jax.planning.chips import Chip
from sr1_jax.planning.costs import Costs
from sr1_jax.planning.run import Run, device_bytes
from sr1_jax.rl.micro_batches import bucket, trained_bound
from sr1_jax.rl.settings import needs_critic, row_lengths
from sr1_jax.sharding import batch_parts


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What an episode of the run looks like, on average.

    Attributes:
        prompt_tokens: of a prompt.
        searches: observations an episode reads.
        segment_tokens: sampled before each search and for the answer.
        observation_tokens: of an observation.
        occupancy: share of decode steps times slots that samples a token.
    """

    prompt_tokens: int
    searches: int
    segment_tokens: int
    observation_tokens: int
    occupancy: float = 0.8

    @classmethod
    def of(cls, run: Run, **given: float | None) -> Assumptions:
        """Those of the settings' limits where nothing is given: two searches, segments a quarter
        of the longest, observations nine tenths of it, a prompt of 200 tokens."""
        rollout = run.config.rollout
        usual = {
            "prompt_tokens": 200,
            "searches": min(2, rollout.max_searches) if run.config.method == "search" else 0,
            "segment_tokens": max(1, rollout.max_segment_tokens // 4),
            "observation_tokens": max(1, rollout.max_observation_tokens * 9 // 10),
        }
        found = cls(**(usual | {key: value for key, value in given.items() if value is not None}))
        if not 0 < found.occupancy <= 1:
            raise ValueError(f"--occupancy must lie in (0, 1], not {found.occupancy}.")
        if found.length > rollout.max_context_tokens:
            raise ValueError(
                f"Episodes of {found.length} tokens (--prompt_tokens, --searches, "
                "--segment_tokens, --observation_tokens) exceed rollout.max_context_tokens="
                f"{rollout.max_context_tokens}."
            )
        return found

    @property
    def sampled(self) -> int:
        """Tokens an episode samples."""
        return (self.searches + 1) * self.segment_tokens

    @property
    def filled(self) -> float:
        """Tokens in a slot's cache when one is sampled, on average over those of an episode."""
        read = self.searches / 2 * (self.segment_tokens + self.observation_tokens)
        return self.prompt_tokens + read + self.segment_tokens / 2

    @property
    def length(self) -> int:
        """Tokens of a whole episode."""
        return self.prompt_tokens + self.sampled + self.searches * self.observation_tokens


def calls_of(run: Run, assumed: Assumptions) -> dict[str, float]:
    """How often a step calls each program; fractions are averages."""
    config = run.config
    calls = {"reshard layer": float(run.decoder.layers), "reshard ends": 1.0, "prepare": 1.0}
    episodes, slots = config.questions * config.samples, config.rollout.slots
    calls[f"decode {slots}"] = episodes * assumed.sampled / (slots * assumed.occupancy)
    reads = [(assumed.prompt_tokens, 1), (assumed.observation_tokens, assumed.searches)]
    buckets = config.rollout.extend_buckets
    for tokens, times in reads:
        while tokens > 0 and times:
            columns = next((size for size in buckets if size >= tokens), buckets[-1])
            name = f"extend {slots}×{columns}"
            calls[name] = calls.get(name, 0.0) + times * episodes / slots
            tokens -= columns
    if run.decoder.lora is not None:
        calls["merge"] = 1.0
    if config.samples > 1:
        calls[f"fork {slots}×{config.rollout.max_context_tokens}"] = episodes / slots
    cut, length, passes = usual_cut(run, assumed)
    critic = needs_critic(config.learner)
    learns = config.learner.kl_in != "none" or critic
    if learns or config.learner.old_logp == "trainer":
        # All mini-batches are cut together to be scored.
        tokens = episodes * (assumed.length if config.learner.packing else length)
        calls[f"score {cut}"] = math.ceil(tokens / (config.learner.micro_batch * length))
    for model in ("policy", "critic") if critic else ("policy",):
        updates = config.learner.epochs * config.learner.minibatches
        calls[f"{model} zeros"] = calls[f"{model} apply"] = updates
        calls[f"{model} accumulate {cut}"] = config.learner.epochs * passes
    return calls


def usual_cut(run: Run, assumed: Assumptions) -> tuple[str, int, float]:
    """Length and bound on trained tokens of the micro-batch that an average episode is in, as one
    name; that length; and how many of them the mini-batches of all episodes are.

    Packed rows hold the longest episode there can be, since each mini-batch will have a long one,
    and are as full as their number allows.

    Raises:
        ValueError: no row holds the assumed episode.
    """
    config, learner = run.config, run.config.learner
    episodes = config.questions * config.samples
    if not learner.packing:
        length = bucket(assumed.length, learner.length_buckets)
        most = trained_bound(assumed.sampled, length)
        return f"{length}/{most}", length, episodes / learner.micro_batch
    tokens = episodes / learner.minibatches * assumed.length

    def micro_batches(length: int) -> int:
        return math.ceil(tokens / (learner.micro_batch * length))

    longest = max(assumed.length, learner.length_buckets[-1])
    holding = [length for length in row_lengths(learner) if length >= longest]
    if not holding:
        raise ValueError(
            f"Episodes of {longest} tokens fit none of learner.row_lengths="
            f"{tuple(row_lengths(learner))}."
        )
    length = min(holding, key=lambda length: length * micro_batches(length))
    most = trained_bound(math.ceil(assumed.sampled * length / assumed.length), length)
    return f"{length}/{most}", length, learner.minibatches * micro_batches(length)


def needed_flops(run: Run, program: Program, assumed: Assumptions) -> float:
    """FLOPs a device needs for the positions a program is given, without rematerialisation.

    2 a parameter of the layers and position; 2·V·D a position that passes the head; and causal
    attention, 2·2·H·E a position and one it sees (Kaplan et al. 2020, section 2.1, with the
    context's share). Twice as much again for the gradient.
    """
    shape, config = run.decoder, run.config
    kind = program.name.split()[0]
    if not program.tokens:
        return 0.0
    heads = shape.heads + 2 * shape.kv_heads
    matrices = shape.width * (heads + shape.heads) * shape.head_dim
    matrices += 3 * shape.width * shape.ff_width
    layers = 2.0 * shape.layers * matrices * program.tokens
    head = 2.0 * shape.vocab_size * shape.width
    pair = 4.0 * shape.layers * shape.heads * shape.head_dim
    devices = run.mesh.devices.size
    if kind in ("extend", "decode"):
        seen = assumed.filled if kind == "decode" else assumed.length / 2
        head *= program.tokens if kind == "decode" else 0
        return (layers + head + pair * program.tokens * seen) / devices
    rows = config.learner.micro_batch
    length, most = program.settings["length"], program.settings["most"]
    seen = (assumed.length if config.learner.packing else length) / 2
    trunk = layers + pair * rows * length * seen
    head *= rows * most
    if kind == "score":
        learner = config.learner
        passes = (learner.old_logp == "trainer") + (learner.kl_in != "none")
        return (passes * (trunk + head) + needs_critic(learner) * trunk) / devices
    return 3 * (trunk + (head if kind == "policy" else 0.0)) / devices


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of one call on a device.

    Attributes:
        compute, memory: at the chip's peak rates.
        cycles: by the compiler's estimates; what it gives none for, at the peak rates.
        network: all collectives.
        blocking: those that nothing runs beside.
    """

    compute: float
    memory: float
    cycles: float
    network: float
    blocking: float

    @property
    def seconds(self) -> float:
        """The larger of peak rates and the compiler's estimates, and collectives where they are
        in the way."""
        core = max(self.compute, self.memory, self.cycles)
        return max(core + self.blocking, self.network)

    @property
    def limit(self) -> str:
        """What most of it is."""
        parts = {
            "compute": self.compute,
            "memory": self.memory,
            "cycles": self.cycles,
            "network": self.network,
        }
        return max(parts, key=parts.get)


def time_of(costs: Costs, chip: Chip) -> Time:
    """Seconds of a program on one device of a chip."""
    uncounted = max(costs.uncounted_bytes / chip.bandwidth, costs.uncounted_flops / chip.flops)
    return Time(
        compute=costs.flops / chip.flops,
        memory=costs.bytes / chip.bandwidth,
        cycles=costs.cycles / chip.clock + uncounted,
        network=sum(costs.collectives.values()) / chip.ring,
        blocking=costs.blocking / chip.ring,
    )


def decode_traffic(run: Run, assumed: Assumptions) -> tuple[float, float]:
    """Bytes of weights, and of the cache that is in use, that a decode step has to read on a
    device."""
    served = run.resident["rollout weights"]
    weights = device_bytes(served)
    if not run.decoder.tied_embeddings:
        table = served.embed_VD
        rows = table.sharding.shard_shape(table.shape)[0]
        slots = run.config.rollout.slots // batch_parts(run.mesh)
        # Of the embedding only the rows of the tokens are read.
        weights -= device_bytes(table) * (1 - min(1.0, slots / rows))
    cache = device_bytes(run.resident["KV cache"])
    return weights, cache * assumed.filled / run.config.rollout.max_context_tokens
