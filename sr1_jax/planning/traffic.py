"""Bytes that an instruction moves between main memory and the core."""

from __future__ import annotations

from sr1_jax.planning.collectives import END, START, collectives_of, is_asynchronous
from sr1_jax.planning.hlo import VECTOR_MEMORY, Computation, Instruction, Module

# They name, regroup or wait for what is there already.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "copy-done", "slice-done", "async-done", "async-update",
    "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done",
    "add-dependency", "while", "conditional", "call",
}  # fmt: skip
_VIEWS = ("bitcast", "reshape", "convert", "copy", "transpose")
_PARTS = ("dynamic-slice", "slice", "gather")


def main_memory_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes read and written; of slices, those of the slice; of an asynchronous collective, all
    where it starts.

    Args:
        module: of both.
        computation: of the instruction; not one that is fused.
        instruction: any.
    """
    opcode = instruction.opcode
    if opcode in _FREE:
        return 0.0
    if opcode in ("copy-start", "slice-start"):
        return _moved(instruction)
    if opcode in ("all-gather-start", "collective-permute-start"):
        return _started(instruction)
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == "fusion":
        phases = {found.phase for found in collectives_of(module, computation, instruction)}
        if END in phases:
            return 0.0
        if START in phases:
            return _started(instruction)
        fused = module.computations[dict(instruction.called)["calls"]]
        parameters = {int(x.literal): x for x in fused if x.opcode == "parameter"}
        read = sum(
            min(_read_of(module, fused, parameters[number]), operand.bytes_in())
            for number, operand in enumerate(operands)
            if operand.bytes_in()
        )
        return read + min(_written(module, fused), instruction.bytes_in())
    if opcode in _PARTS:
        # Either end may lie in vector memory.
        part = sum(shape.bytes for shape in instruction.shapes)
        return (part if operands[0].bytes_in() else 0.0) + instruction.bytes_in()
    if opcode in ("dynamic-update-slice", "scatter"):
        # The rest of the buffer stays where it is.
        return 2 * operands[-1 if opcode == "scatter" else 1].bytes_in()
    return sum(x.bytes_in() for x in dict.fromkeys(operands)) + instruction.bytes_in()


def _started(start: Instruction) -> float:
    """A collective: its operand comes back as a part of the result, and stands for being read."""
    return start.bytes_in()


def _moved(start: Instruction) -> float:
    """A copy that runs beside others: (source and target, or the like), and a flag."""
    arrays = [shape for shape in start.shapes if shape.dims]
    size = min(shape.bytes for shape in arrays)
    return size * sum(shape.space != VECTOR_MEMORY for shape in arrays)


def _read_of(module: Module, fused: Computation, value: Instruction) -> float:
    """Bytes of a fusion's operand that the fusion reads."""
    whole = sum(shape.bytes for shape in value.shapes)
    read = 0.0
    for user in fused.users()[value.name]:
        if user.opcode in _VIEWS:
            read += _read_of(module, fused, user)
        elif user.opcode in _PARTS and user.operands[0] == value.name:
            read += sum(shape.bytes for shape in user.shapes)
        elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == value.name:
            continue
        elif is_asynchronous(user) or (user.opcode == "tuple" and user.name == fused.root):
            continue  # it is handed on
        elif user.opcode == "fusion":
            inner = module.computations[dict(user.called)["calls"]]
            parameters = {int(x.literal): x for x in inner if x.opcode == "parameter"}
            read += sum(
                _read_of(module, inner, parameters[number])
                for number, name in enumerate(user.operands)
                if name == value.name
            )
        else:
            return whole
    return min(read, whole) if fused.root != value.name else whole


def _written(module: Module, fused: Computation) -> float:
    """Bytes that a fusion writes; in place, those of the slice."""
    root = fused.instructions[fused.root]
    results = root.operands if root.opcode == "tuple" else (root.name,)
    return sum(_written_of(module, fused, fused.instructions[name]) for name in results)


def _written_of(module: Module, fused: Computation, result: Instruction) -> float:
    while result.opcode in _VIEWS and result.operands:
        source = fused.instructions[result.operands[0]]
        if source.opcode not in (*_VIEWS, "dynamic-update-slice", "scatter", "fusion"):
            break
        result = source
    if result.opcode == "dynamic-update-slice":
        return sum(shape.bytes for shape in fused.instructions[result.operands[1]].shapes)
    if result.opcode == "scatter":
        return sum(shape.bytes for shape in fused.instructions[result.operands[-1]].shapes)
    if result.opcode == "fusion":
        return _written(module, module.computations[dict(result.called)["calls"]])
    if result.opcode == "parameter" or is_asynchronous(result):
        return 0.0
    return result.bytes_in()
