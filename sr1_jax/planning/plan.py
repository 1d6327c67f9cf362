"""The plan of a run on one topology: its programs, compiled, and the step they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections

from sr1_jax.abstract import Program
from sr1_jax.chips import Chip, chip_of
from sr1_jax.paths import disk_path
from sr1_jax.planning import hlo
from sr1_jax.planning.buffers import largest_with_vocabulary, read_buffers
from sr1_jax.planning.compiler import Compiled, Memory, compile_program, topology_devices
from sr1_jax.planning.costs import Costs, costs_of
from sr1_jax.planning.kept import compile_kept
from sr1_jax.planning.preemption import (
    USUAL,
    Cloud,
    Preemption,
    as_values,
    held_at_resumption,
    preemption,
)
from sr1_jax.planning.run import (
    OPTIMIZERS,
    REFERENCE,
    ROLLOUT,
    Run,
    also_held,
    chunk_bytes,
    device_bytes,
    make_run,
)
from sr1_jax.planning.step import Assumptions, calls_of, kind_of
from sr1_jax.planning.timing import Time, decode_traffic, needed_flops, time_of
from sr1_jax.retrieval.listing import Embed, IndexShape, Search
from sr1_jax.rl.program_keys import Merge
from sr1_jax.rollout.program_keys import Decode, Reshard

SPARE = 0.05  # share of the memory that has to stay free


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of the plan.

    Attributes:
        key: of the program.
        calls: a step, on average.
        memory: of the program itself; None if it did not fit.
        also_held: what else the device holds meanwhile, bytes by name.
        costs, time: of one call; None if it did not fit.
        needed: FLOPs a device has to compute in one call, recomputation not counted.
        peak: FLOPs a second of the device.
        vocabulary: its largest buffer with a vocabulary axis, as (shape, bytes); None without one.
        problem: why there is no program.
        seconds_compiled: of compilation.
    """

    key: Any
    calls: float
    memory: Memory | None
    also_held: dict[str, int]
    costs: Costs | None
    time: Time | None
    needed: float
    peak: float
    vocabulary: tuple[str, int] | None
    problem: str
    seconds_compiled: float

    @property
    def name(self) -> str:
        """The key as people read it."""
        return str(self.key)

    @property
    def total(self) -> float:
        """Bytes of everything on the device while the program runs."""
        return (self.memory.total if self.memory else 0) + sum(self.also_held.values())

    @property
    def share_of_peak(self) -> float:
        """Needed FLOPs over what the device could compute in the predicted time."""
        return self.needed / (self.time.seconds * self.peak) if self.time else 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run costs on a topology.

    Attributes:
        topology: its name.
        run: the run made of shapes.
        chip: of the topology.
        assumed: what episodes look like.
        rows: one a compiled program.
        cloud: what is assumed of preemptions.
    """

    topology: str
    run: Run
    chip: Chip
    assumed: Assumptions
    rows: list[Row]
    cloud: Cloud = USUAL

    @property
    def chips(self) -> int:
        return self.run.mesh.devices.size // self.chip.per_chip

    @property
    def resident(self) -> dict[str, int]:
        """Bytes that a device holds between programs, by name; known before any is compiled."""
        return {name: device_bytes(tree) for name, tree in self.run.resident.items()}

    def fits(self, row: Row) -> bool:
        """Whether a program leaves `SPARE` of the memory free, whatever else is there."""
        return not row.problem and row.total <= (1 - SPARE) * self.chip.memory

    def holds_too_many_logits(self, row: Row) -> bool:
        """Whether a buffer with a vocabulary axis is larger than learner.chunk_tokens says."""
        return row.vocabulary is not None and row.vocabulary[1] > chunk_bytes(self.run)

    @property
    def all_fit(self) -> bool:
        return bool(self.rows) and all(map(self.fits, self.rows))

    @property
    def terms(self) -> dict[str, float]:
        """Seconds of a step by kind of program, the largest first."""
        terms: dict[str, float] = {}
        for row in self.rows:
            if row.time and row.calls:
                term = kind_of(row.key)
                terms[term] = terms.get(term, 0.0) + row.calls * row.time.seconds
        return dict(sorted(terms.items(), key=lambda item: -item[1]))

    @property
    def step_seconds(self) -> float:
        """One after the other; searches and other work of the hosts not counted."""
        return sum(self.terms.values())

    @property
    def preemption(self) -> Preemption | None:
        """What one costs; None where the plan does not know how long a step is: a program that it
        calls was left out, or has no time."""
        timed = {row.key for row in self.rows if row.time}
        if not calls_of(self.run, self.assumed).keys() <= timed:
            return None
        return preemption(self.run, self.step_seconds, self.cloud)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of a step's episodes, read and written, a second and chip."""
        episodes = self.run.config.questions * self.run.config.samples
        return episodes * self.assumed.length / max(self.step_seconds, 1e-9) / self.chips

    @property
    def decode_overhead(self) -> float | None:
        """Bytes that a decode step moves over those of weights and live cache."""
        row = next((r for r in self.rows if isinstance(r.key, Decode) and r.costs), None)
        return row.costs.bytes / sum(decode_traffic(self.run, self.assumed)) if row else None


def make_plan(
    config: ml_collections.ConfigDict,
    topology: str,
    *,
    every: bool = False,
    only: str = "",
    keep: str = "",
    index: IndexShape | None = None,
    cloud: Cloud = USUAL,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    **assumed: float | None,
) -> Plan:
    """Compiles the programs of a run for a topology.

    Args:
        config: of the run.
        topology: such as "v5e:8x8".
        every: each program a step may call, instead of those an average step calls and the
            largest of each kind.
        only: programs whose name starts so, of those; several with commas.
        keep: a folder from which compiled programs are taken, and where they are put; "": none.
        index: a dense index that the devices hold besides.
        cloud: what is assumed of preemptions.
        progress: called before each program with how many are done, how many there are, its name.
        assumed: see `Assumptions`; None for the usual.

    Raises:
        ValueError: settings that cannot work or do not fit the topology; names the keys.
        RuntimeError: the TPU compiler is not installed.
    """
    chip = chip_of(topology)
    run = make_run(config, topology_devices(topology), index)
    assumptions = Assumptions.of(run, **assumed)
    calls = calls_of(run, assumptions)
    chosen = run.programs if every else usual_programs(run.programs, calls)
    chosen = [program for program in chosen if program.name.startswith(tuple(only.split(",")))]
    rows, folder = [], disk_path(keep, "--keep") if keep else None
    for number, program in enumerate(chosen):
        progress(number, len(chosen), program.name)
        compiled = compile_kept(program, folder) if folder else compile_program(program)
        rows.append(make_row(run, program, compiled, chip, calls, assumptions))
    progress(len(chosen), len(chosen), "")
    return Plan(topology, run, chip, assumptions, rows, cloud)


def usual_programs(programs: list[Program], calls: dict[Any, float]) -> list[Program]:
    """Those that an average step calls, and of each kind the one of most positions."""
    largest: dict[str, Program] = {}
    for program in programs:
        kind = kind_of(program.key)
        # Of as many positions, the one listed last takes the most memory.
        if kind not in largest or program.tokens >= largest[kind].tokens:
            largest[kind] = program
    usual = {program.key for program in largest.values()} | calls.keys()
    return [program for program in programs if program.key in usual]


def make_row(
    run: Run,
    program: Program,
    compiled: Compiled,
    chip: Chip,
    calls: dict[Any, float],
    assumed: Assumptions,
) -> Row:
    """What a compiled program costs, and what the device holds meanwhile."""
    costs = time = vocabulary = None
    if compiled.memory:
        costs = costs_of(hlo.parse(compiled.text), assumed.filled)
        time = time_of(costs, chip)
        found = largest_with_vocabulary(
            read_buffers(compiled.buffers),
            run.policy.vocab_size,
            run.policy.width,
            run.mesh.devices.size,
        )
        if found:
            dims = ",".join(map(str, found.shape.dims))
            vocabulary = (f"{found.shape.dtype}[{dims}]", found.bytes)
    return Row(
        program.key,
        calls.get(program.key, 0.0),
        compiled.memory,
        also_held(run, program.key),
        costs,
        time,
        needed_flops(run, program, assumed),
        chip.flops,
        vocabulary,
        compiled.problem,
        compiled.seconds,
    )


def advice(plan: Plan, row: Row) -> list[str]:
    """What to change where a program does not fit: keys and values, the strongest first."""
    config, found = plan.run.config, []
    rollout = isinstance(row.key, ROLLOUT)
    on_slots = rollout and not isinstance(row.key, (Merge, Reshard, Search, Embed))
    held = row.also_held.keys()
    if held & {*OPTIMIZERS.values()} and "optimizer" not in config.learner.offload:
        found.append("--config.learner.offload='(\"optimizer\",)'")
    if on_slots and config.rollout.slots > 1:
        found.append(f"--config.rollout.slots={config.rollout.slots // 2}")
    if plan.run.index is not None and config.retrieval.dense.dtype != "int8":
        found.append("--config.retrieval.dense.dtype=int8")
    if rollout and config.rollout.weights == "same":
        found.append("--config.rollout.weights=bfloat16")
    # With adapters the reference is the base itself, which every program needs.
    own = REFERENCE in held and plan.run.policy.lora is None
    if own and REFERENCE not in config.learner.offload:
        found.append('--config.learner.offload=\'("optimizer","reference")\'')
    if not rollout and config.learner.share_prefixes:
        found.append("--config.learner.share_prefixes=False")
    if not rollout and plan.run.policy.remat != "full":
        found.append("--config.base.remat=full")
    parts = plan.run.mesh.shape["data"] * plan.run.mesh.shape["fsdp"]
    if not rollout and config.learner.micro_batch // 2 >= parts:
        found.append(f"--config.learner.micro_batch={config.learner.micro_batch // 2}")
    if config.learner.optimizer_dtype != "bfloat16":
        found.append("--config.learner.optimizer_dtype=bfloat16")
    if plan.run.mesh.shape["data"] > 1:
        found.append("--config.mesh.data=1 --config.mesh.fsdp=-1")
    return [*found, "a larger topology"]


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything a plan says, as plain values; bytes, FLOPs and seconds are of one device."""
    return {
        "topology": plan.topology,
        "chips": plan.chips,
        "mesh": dict(plan.run.mesh.shape),
        "chip": plan.chip._asdict(),
        "assumptions": dataclasses.asdict(plan.assumed),
        "resident": plan.resident,
        "fits": plan.all_fit,
        "step_seconds": plan.step_seconds,
        "step_terms": plan.terms,
        "held_at_resumption": held_at_resumption(plan.run),
        "preemption": as_values(plan.preemption) if plan.preemption else None,
        "tokens_per_second_and_chip": plan.tokens_per_second,
        "decode_bytes_over_needed": plan.decode_overhead,
        "programs": [_row_as_json(plan, row) for row in plan.rows],
    }


def _row_as_json(plan: Plan, row: Row) -> dict[str, Any]:
    entry = {
        "program": row.name,
        "calls_per_step": row.calls,
        "fits": plan.fits(row),
        "problem": row.problem,
        "memory": row.memory._asdict() | {"total": row.memory.total} if row.memory else None,
        "beside": row.also_held,
        "memory_with_all": row.total,
        "needed_flops": row.needed,
        "largest_with_vocabulary": row.vocabulary,
        "holds_too_many_logits": plan.holds_too_many_logits(row),
        "seconds_compiled": row.seconds_compiled,
    }
    if row.costs and row.time:
        entry |= {
            "flops": row.costs.flops,
            "bytes": row.costs.bytes,
            "cycles": row.costs.cycles,
            "collective_bytes": dict(row.costs.collectives),
            "collective_calls": dict(row.costs.collective_calls),
            "blocking_bytes": row.costs.blocking,
            "unknown_loops": row.costs.unknown_loops,
            "unknown_kernels": row.costs.unknown_kernels,
            "seconds": dataclasses.asdict(row.time) | {"predicted": row.time.seconds},
            "limit": row.time.limit,
            "share_of_peak": row.share_of_peak,
            "heaviest_cycles": dict(row.costs.heaviest.most_common(10)),
        }
    if not plan.fits(row):
        entry["advice"] = advice(plan, row)
    return entry
