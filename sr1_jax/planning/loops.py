"""How often a loop of a compiled program runs."""

from __future__ import annotations

import re

from sr1_jax.planning.hlo import Computation, Instruction, Module

_COPIES = ("copy", "bitcast", "copy-done", "copy-start", "convert")


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if the text does not say.

    Either the compiler wrote it down, or the loop counts: its condition compares a counter with a
    constant, the counter starts at a constant, and the body adds a constant to it.

    Args:
        module: of both.
        computation: in which the loop stands.
        loop: the `while`.
    """
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if found:
        return int(found[1])
    called = dict(loop.called)
    compared = _comparison(module, module.computations[called["condition"]])
    if compared is None:
        return None
    index, bound, direction = compared
    stride = _stride(module, module.computations[called["body"]], index)
    start = _start(computation, loop, index)
    if stride is None or start is None or stride <= 0 or direction not in ("LT", "LE"):
        return None
    last = bound if direction == "LT" else bound + 1
    return max(0, -(-(last - start) // stride))


def _comparison(module: Module, condition: Computation) -> tuple[int, int, str] | None:
    """(index of the counter in the loop's state, bound, direction) of a condition."""
    found = _inlined(module, condition, condition.instructions[condition.root])
    if found is None:
        return None
    compare, (left, right) = found
    direction = re.search(r"direction=(\w+)", compare.attributes)
    if compare.opcode != "compare" or left.opcode != "get-tuple-element" or direction is None:
        return None
    bound, index = _constant(condition, right), _index(left)
    return None if bound is None or index is None else (index, bound, direction[1])


def _stride(module: Module, body: Computation, index: int) -> int | None:
    """What a body adds to number `index` of its state."""
    root = body.instructions[body.root]
    if root.opcode != "tuple" or index >= len(root.operands):
        return None
    step = _source(body, body.instructions[root.operands[index]])
    found = _inlined(module, body, step)
    if found is None or found[0].opcode != "add":
        return None
    counter, stride = found[1]
    counter = _source(body, counter)
    if counter.opcode != "get-tuple-element" or _index(counter) != index:
        return None
    return _constant(body, stride)


def _start(computation: Computation, loop: Instruction, index: int) -> int | None:
    """The constant that number `index` of a loop's state starts at."""
    state = _source(computation, computation.instructions[loop.operands[0]])
    if state.opcode != "tuple":
        return None
    return _constant(computation, computation.instructions[state.operands[index]])


def _inlined(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Instruction, list[Instruction]] | None:
    """An instruction of two operands, and these as seen from outside of the fusion around it."""
    given = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "get-tuple-element" and given and given[0].opcode == "fusion":
        number, instruction = _index(instruction), given[0]
        given = [computation.instructions[name] for name in instruction.operands]
    else:
        number = None
    if instruction.opcode == "fusion":
        fused = module.computations[dict(instruction.called)["calls"]]
        outer = {x.name: given[int(x.literal)] for x in fused if x.opcode == "parameter"}
        instruction = fused.instructions[fused.root]
        if number is not None and instruction.opcode == "tuple":
            instruction = fused.instructions[instruction.operands[number]]
        given = [outer.get(name, fused.instructions[name]) for name in instruction.operands]
    return (instruction, given) if len(given) == 2 else None


def _source(computation: Computation, instruction: Instruction) -> Instruction:
    """What an instruction is a copy of."""
    while instruction.opcode in _COPIES and instruction.operands:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(computation: Computation, instruction: Instruction) -> int | None:
    instruction = (
        _source(computation, instruction)
        if instruction.name in computation.instructions
        else instruction
    )
    is_number = re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if instruction.opcode == "constant" and is_number else None


def _index(element: Instruction) -> int | None:
    found = re.search(r"\bindex=(\d+)", element.attributes)
    return int(found[1]) if found else None
