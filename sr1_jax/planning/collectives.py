"""Collectives of a compiled program: what a device sends in each, and which of them run while
something else does.

The TPU compiler makes an asynchronous collective of three fusions or more: one that starts it, one
or several computing fusions that it runs along with, and one that waits for its end. The text has
the collective in each of them, so only the first counts. Channels do not tell them apart: the
compiler gives one number to collectives that have nothing to do with each other, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from sr1_jax.planning.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# What `Collective.phase` may be.
WHOLE, START, CONTINUED, END = "whole", "start", "continued", "end"


class Collective(NamedTuple):
    """A collective in an instruction, or a part of one.

    Attributes:
        kind: one of `COLLECTIVES`.
        sent: bytes that a device sends in all of it.
        phase: whether the instruction runs all of it (nothing else runs meanwhile), starts it,
            carries it on or waits for its end.
        handle: what an end has in common with its start.
    """

    kind: str
    sent: float
    phase: str
    handle: str


def collectives_of(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[Collective]:
    """The collectives of an instruction, those inside a fusion among them.

    Args:
        module: of both.
        computation: of the instruction; not one that is fused.
        instruction: any but a loop, branch or call.
    """
    opcode = instruction.opcode
    if opcode.removesuffix("-start") in COLLECTIVES:
        phase = START if opcode.endswith("-start") else WHOLE
        yield _collective(computation, instruction, phase, instruction.name)
    elif opcode == "async-start":
        inner = module.computations[dict(instruction.called)["calls"]]
        for found in _inside(module, inner):
            yield found._replace(phase=START, handle=instruction.name)
    elif opcode.endswith("-done"):
        # The bytes are those of the start.
        yield Collective("", 0.0, END, _first_of_chain(computation, instruction))
    elif opcode == "fusion":
        yield from _inside(module, module.computations[dict(instruction.called)["calls"]])


def _inside(module: Module, fused: Computation) -> Iterator[Collective]:
    targets = " ".join(x.attributes for x in fused if x.opcode == "custom-call")
    for instruction in fused:
        if instruction.opcode == "fusion":
            yield from _inside(module, module.computations[dict(instruction.called)["calls"]])
        if instruction.opcode not in COLLECTIVES:
            continue
        channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
        if not is_asynchronous(instruction):
            phase = WHOLE
        elif '"AsyncCollectiveStart"' in targets:
            phase = START
        else:
            phase = END if '"AsyncCollectiveDone"' in targets else CONTINUED
        yield _collective(fused, instruction, phase, channel[0] if channel else "")


def is_asynchronous(fused: Instruction) -> bool:
    """Whether an instruction of a fusion is a part of an asynchronous collective."""
    return '"async_collective_fusion_config"' in fused.attributes and fused.opcode in COLLECTIVES


def _first_of_chain(computation: Computation, done: Instruction) -> str:
    """Name of the start that a `-done` belongs to, whatever updates stand between."""
    while done.operands and not done.opcode.endswith("-start"):
        done = computation.instructions[done.operands[0]]
    return done.name


def _collective(
    computation: Computation, instruction: Instruction, phase: str, handle: str
) -> Collective:
    """What a device sends: of n devices in a ring, each passes (n-1)/n of the whole on; of a sum
    that everyone gets twice that (Patarasuk and Yuan 2009, section 3)."""
    kind = instruction.opcode.removesuffix("-start")
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
    return Collective(kind, sent, phase, handle)


def _width(shape: Shape) -> float:
    """Bytes of a number."""
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
