"""FLOPs, bytes, cycles and collectives of a compiled program, loops counted as often as they run.

`compiled.cost_analysis()` counts the body of a loop once; here it counts its trips. A loop whose
trips are not known at compile time counts once and is named.

FLOPs are those of matrix products (2 a multiply-add): what a matrix unit is rated by. Bytes are
those that move between main memory and the core: what lies in vector memory is free, a fusion
that reads a slice reads that slice, and one that writes a slice in place writes that slice.

No cycle estimate of the TPU compiler holds a transfer between devices: a collective has none, nor
has the start or the end of an asynchronous one, and what runs along with it is estimated as it
is without (tests/planning/test_costs.py asks the compiler). So each asynchronous collective is kept
with what runs until its end, for `step.time_of` to say how long the end waits.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

from sr1_jax.planning.collectives import CONTINUED, END, START, WHOLE, Collective, collectives_of
from sr1_jax.planning.convolutions import convolution_flops
from sr1_jax.planning.hlo import Computation, Instruction, Module
from sr1_jax.planning.kernels import kernel_costs
from sr1_jax.planning.loops import trip_count
from sr1_jax.planning.traffic import main_memory_bytes

_SUMS = ("flops", "bytes", "cycles", "uncounted_bytes", "uncounted_flops", "blocking")


class Overlap(NamedTuple):
    """An asynchronous collective and what runs from its start to its end.

    Attributes:
        sent: bytes that a device sends.
        cycles, uncounted_bytes, uncounted_flops: as of `Costs`, of what runs meanwhile.
    """

    sent: float
    cycles: float
    uncounted_bytes: float
    uncounted_flops: float


@dataclasses.dataclass
class Costs:
    """What one call of a program costs a device.

    Attributes:
        flops: of matrix products.
        bytes: read from and written to main memory.
        cycles: sum of the compiler's estimates.
        uncounted_bytes, uncounted_flops: of instructions that the compiler gives no cycles for.
        blocking: bytes that a device sends while nothing else runs.
        collectives: bytes that a device sends, by kind.
        collective_calls: how often, by kind.
        overlaps: how often each asynchronous collective runs.
        unknown_loops: loops whose trips are not known; they count once.
        unknown_kernels: custom kernels whose FLOPs are not known; they count none.
        heaviest: estimated cycles by the name of the model's operation.
    """

    flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    uncounted_bytes: float = 0.0
    uncounted_flops: float = 0.0
    blocking: float = 0.0
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    collective_calls: Counter[str] = dataclasses.field(default_factory=Counter)
    overlaps: Counter[Overlap] = dataclasses.field(default_factory=Counter)
    unknown_loops: int = 0
    unknown_kernels: int = 0
    heaviest: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, other: Costs, times: int = 1) -> None:
        """Adds another cost, `times` over."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("collectives", "collective_calls", "overlaps", "heaviest"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] += times * value
        self.unknown_loops += other.unknown_loops
        self.unknown_kernels += other.unknown_kernels


def costs_of(module: Module, filled: float | None = None) -> Costs:
    """Costs of one call of a compiled module on one device.

    Args:
        module: of `hlo.parse`.
        filled: positions of a slot's cache that hold a token, on average; None: all.
    """
    return _Reader(module, filled).computation(module.entry)


class _Reader:
    def __init__(self, module: Module, filled: float | None):
        self._module, self._filled = module, filled
        self._known: dict[tuple[str, bool], Costs] = {}

    def computation(self, name: str, *, fused: bool = False) -> Costs:
        if (name, fused) not in self._known:
            costs = Costs()
            computation = self._module.computations[name]
            network = _Network(costs)
            # In the order of the schedule.
            for instruction in computation:
                self._instruction(computation, instruction, costs, fused)
                for collective in () if fused else self._collectives(computation, instruction):
                    network.add(collective)
            self._known[name, fused] = costs
        return self._known[name, fused]

    def _collectives(self, computation: Computation, instruction: Instruction) -> list[Collective]:
        return list(collectives_of(self._module, computation, instruction))

    def _instruction(
        self, computation: Computation, instruction: Instruction, costs: Costs, fused: bool
    ) -> None:
        opcode, called = instruction.opcode, dict(instruction.called)
        if opcode == "while":
            trips = trip_count(self._module, computation, instruction)
            costs.unknown_loops += trips is None
            for role in ("condition", "body"):
                costs.add(self.computation(called[role]), 1 if trips is None else trips)
        elif opcode == "conditional":
            branches = [self.computation(name) for _, name in instruction.called]
            costs.add(max(branches, key=lambda branch: (branch.flops, branch.bytes)))
        elif opcode == "call":
            costs.add(self.computation(called.get("to_apply") or called["calls"], fused=fused))
        elif opcode == "async-start":
            inner = self.computation(called["calls"], fused=fused)
            # Its collectives block nothing, and are counted where they start.
            network = {"blocking": 0.0, "collectives": Counter(), "collective_calls": Counter()}
            costs.add(dataclasses.replace(inner, **network))
        else:
            self._add_flops(computation, instruction, costs)
            if not fused:
                self._add_bytes_and_cycles(computation, instruction, costs)

    def _add_flops(self, computation: Computation, instruction: Instruction, costs: Costs) -> None:
        opcode, called = instruction.opcode, dict(instruction.called)
        if opcode == "dot":
            costs.flops += _dot_flops(computation, instruction)
        elif opcode == "convolution":
            costs.flops += convolution_flops(computation, instruction)
        elif opcode == "custom-call":
            flops = kernel_costs(computation, instruction, self._filled).flops
            costs.unknown_kernels += flops is None
            costs.flops += flops or 0
            costs.uncounted_flops += flops or 0
        elif "calls" in called:
            costs.add(self.computation(called["calls"], fused=True))

    def _add_bytes_and_cycles(
        self, computation: Computation, instruction: Instruction, costs: Costs
    ) -> None:
        moved = kernel_costs(computation, instruction, self._filled).bytes
        if moved is None:
            moved = main_memory_bytes(self._module, computation, instruction)
        cycles = instruction.number("estimated_cycles")
        costs.bytes += moved
        if cycles is not None:
            costs.cycles += cycles
            costs.heaviest[operation_name(instruction)] += cycles
        elif not self._collectives(computation, instruction):
            # A collective is as slow as the network, in which its time is.
            costs.uncounted_bytes += moved


class _Network:
    """Collectives of a computation, as they come in its schedule.

    Args:
        costs: of the computation so far; added to.
    """

    def __init__(self, costs: Costs):
        self._costs = costs
        self._under_way: dict[str, Overlap] = {}  # by handle: bytes, and the costs at the start

    def add(self, collective: Collective) -> None:
        costs, (kind, sent, phase, handle) = self._costs, collective
        if phase == END:
            began = self._under_way.pop(handle, None)
            if began is not None:
                costs.overlaps[self._since(began)] += 1
        if phase in (END, CONTINUED):
            return
        costs.collectives[kind] += sent
        costs.collective_calls[kind] += 1
        if phase == WHOLE:
            costs.blocking += sent
        elif phase == START:
            self._under_way[handle] = Overlap(
                sent, costs.cycles, costs.uncounted_bytes, costs.uncounted_flops
            )

    def _since(self, began: Overlap) -> Overlap:
        now = self._costs
        return Overlap(
            began.sent,
            now.cycles - began.cycles,
            now.uncounted_bytes - began.uncounted_bytes,
            now.uncounted_flops - began.uncounted_flops,
        )


def operation_name(instruction: Instruction) -> str:
    """What in the model an instruction comes from, as traced; else its own name."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.name


def _dot_flops(computation: Computation, dot: Instruction) -> int:
    """2 · numbers of the result · length of the sums."""
    left = computation.instructions[dot.operands[0]].shapes[0].dims
    length = math.prod(left[axis] for axis in dot.braces("lhs_contracting_dims"))
    return 2 * dot.shapes[0].size * length
