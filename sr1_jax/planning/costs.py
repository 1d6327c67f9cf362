"""FLOPs, bytes, cycles and collectives of a compiled program, loops counted as often as they run.

`compiled.cost_analysis()` counts the body of a loop once; here it counts its trips. A loop whose
trips are not known at compile time counts once and is named.

FLOPs are those of matrix products (2 a multiply-add): what a matrix unit is rated by. Bytes are
those that move between main memory and the core: what lies in vector memory is free, a fusion
that reads a slice reads that slice, and one that writes a slice in place writes that slice.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter

from sr1_jax.planning.convolutions import convolution_flops
from sr1_jax.planning.hlo import Computation, Instruction, Module
from sr1_jax.planning.kernels import kernel_costs
from sr1_jax.planning.loops import trip_count
from sr1_jax.planning.traffic import main_memory_bytes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SUMS = ("flops", "bytes", "cycles", "uncounted_bytes", "uncounted_flops", "blocking")


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
    collectives: Counter = dataclasses.field(default_factory=Counter)
    collective_calls: Counter = dataclasses.field(default_factory=Counter)
    unknown_loops: int = 0
    unknown_kernels: int = 0
    heaviest: Counter = dataclasses.field(default_factory=Counter)

    def add(self, other: Costs, times: int = 1) -> None:
        """Adds another cost, `times` over."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("collectives", "collective_calls", "heaviest"):
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
            for instruction in computation:
                self._instruction(computation, instruction, costs, fused)
            self._known[name, fused] = costs
        return self._known[name, fused]

    def _instruction(
        self, computation: Computation, instruction: Instruction, costs: Costs, fused: bool
    ) -> None:
        opcode, called = instruction.opcode, dict(instruction.called)
        kernel = kernel_costs(computation, instruction, self._filled)
        if opcode == "while":
            trips = trip_count(self._module, computation, instruction)
            costs.unknown_loops += trips is None
            for role in ("condition", "body"):
                costs.add(self.computation(called[role]), 1 if trips is None else trips)
            return
        if opcode == "conditional":
            branches = [self.computation(name) for _, name in instruction.called]
            costs.add(max(branches, key=lambda branch: (branch.flops, branch.bytes)))
            return
        if opcode in ("call", "async-start"):
            costs.add(self.computation(called.get("to_apply") or called["calls"], fused=fused))
            return
        if opcode == "dot":
            costs.flops += _dot_flops(computation, instruction)
        elif opcode == "convolution":
            costs.flops += convolution_flops(computation, instruction)
        elif opcode == "custom-call":
            costs.unknown_kernels += kernel.flops is None
            costs.flops += kernel.flops or 0
            costs.uncounted_flops += kernel.flops or 0
        elif "calls" in called:  # a fusion, or what runs beside others
            costs.add(self.computation(called["calls"], fused=True))
        _add_collective(computation, instruction, costs)
        if fused:
            return
        moved = kernel.bytes
        if moved is None:
            moved = main_memory_bytes(self._module, computation, instruction)
        cycles = instruction.number("estimated_cycles")
        costs.bytes += moved
        if cycles is None:
            costs.uncounted_bytes += moved
        else:
            costs.cycles += cycles
            costs.heaviest[operation_name(instruction)] += cycles


def operation_name(instruction: Instruction) -> str:
    """What in the model an instruction comes from, as traced; else its own name."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.name


def _dot_flops(computation: Computation, dot: Instruction) -> int:
    """2 · numbers of the result · length of the sums."""
    left = computation.instructions[dot.operands[0]].shapes[0].dims
    length = math.prod(left[axis] for axis in dot.braces("lhs_contracting_dims"))
    return 2 * dot.shapes[0].size * length


def _add_collective(computation: Computation, instruction: Instruction, costs: Costs) -> None:
    """What a device sends: of n devices in a ring, each passes (n-1)/n of the whole on."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return
    operands = [computation.instructions[name] for name in instruction.operands]
    given = sum(shape.size * _width(shape) for x in operands for shape in x.shapes)
    devices = group_size(instruction)
    if kind == "collective-permute":
        sent = given
    elif kind == "all-gather":
        sent = given * (devices - 1)
    else:
        sent = given * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            # The compiler's own fusion of the sum with the slice that is kept of it.
            kind, sent = "reduce-scatter", sent / 2
    if kind == instruction.opcode and "async" not in computation.name:
        costs.blocking += sent
    costs.collectives[kind] += sent
    costs.collective_calls[kind] += 1


def _width(shape) -> float:
    return shape._replace(tile=()).bytes / max(shape.size, 1)


def group_size(instruction: Instruction) -> int:
    """Devices that a collective runs over; 1 if the text does not say.

    `replica_groups` comes as lists of devices, as a grid [groups, size], or as axes of a mesh.
    """
    text = instruction.attributes
    if found := re.search(r"\bgroup_size = (\d+)", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        # 'axis_0':(2)4 is the part of size 4 of an axis.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 1
