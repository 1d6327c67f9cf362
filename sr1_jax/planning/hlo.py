"""Reads the text of a compiled HLO module (`compiled.as_text()`).

Grammar: https://openxla.org/xla/operation_semantics and, for layouts,
https://openxla.org/xla/shapes and https://openxla.org/xla/tiled_layout. Only what `costs` asks
for is kept: shapes with their layout, operands, attributes, and which computations are called.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

VECTOR_MEMORY, HOST_MEMORY = 1, 5  # memory spaces of layouts; 0 is the device's main memory

_BITS = {"pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Shape(NamedTuple):
    """An array with its layout.

    Attributes:
        dtype: as HLO spells it: bf16, f32, s32, pred, …
        dims: logical sizes.
        order: dimensions from the fastest to the slowest; empty if the text has no layout.
        tile: sizes of the first tile, of the fastest dimensions; empty if not tiled.
        space: memory space, see the constants of this module.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        """Numbers, without padding."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes in memory: the fastest dimensions are padded to whole tiles."""
        return self._padded * _bits(self.dtype) / 8

    @property
    def _padded(self) -> int:
        if not self.tile or len(self.order) != len(self.dims):
            return self.size
        physical = [self.dims[axis] for axis in reversed(self.order)]
        if len(self.tile) > len(physical):
            physical = [1] * (len(self.tile) - len(physical)) + physical
        for place, tile in enumerate(reversed(self.tile), start=1):
            physical[-place] = -(-physical[-place] // tile) * tile
        return math.prod(physical)


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        shapes: of the result; several for a tuple.
        operands: names; for a constant or parameter see `literal`.
        literal: the text between the parentheses.
        attributes: the text after them.
        called: role ("calls", "body", "condition", "to_apply", "branch") and name of each
            computation it calls.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    called: tuple[tuple[str, str], ...]

    def number(self, key: str) -> int | None:
        """An integer of the backend configuration, such as estimated_cycles."""
        found = re.search(rf'"{key}":"?(-?\d+)', self.attributes)
        return int(found[1]) if found else None

    def braces(self, key: str) -> tuple[int, ...]:
        """An attribute such as `lhs_contracting_dims={1,2}`; empty if it is not there."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(x) for x in found[1].split(",") if x) if found else ()

    def bytes_in(self, space: int = 0) -> float:
        """Bytes of the results that lie in a memory space."""
        return sum(shape.bytes for shape in self.shapes if shape.space == space)


class Computation(NamedTuple):
    """Instructions in order, by name; `root` names the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    @functools.cache  # noqa: B019 - computations are few and live as long as the module
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found

    def __hash__(self) -> int:
        return id(self)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())


class Module(NamedTuple):
    """All computations by name, and the name of the entry."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if not line[:1].isspace() and (header := _HEADER.match(line)):
            name, instructions, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif line.startswith("}") and instructions:
            computations[name] = Computation(name, instructions, root)
        elif start := _NAME.match(line):
            instruction = _instruction(start[2], line[start.end() :])
            instructions[instruction.name] = instruction
            root = instruction.name if start[1] or not root else root
    if not entry:
        raise ValueError("The text has no ENTRY computation; it is no compiled HLO module.")
    return Module(computations, entry)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, a tuple's one after the other."""
    return tuple(_shape(*found) for found in _ARRAY.findall(text))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    literal, attributes = text[opening + 1 : closing], text[closing + 1 :]
    called = [(role, callee) for role, callee in _CALLED.findall(attributes)]
    if branches := _BRANCHES.search(attributes):
        called += [("branch", callee) for callee in _OPERAND.findall(branches[1])]
    called = [("branch" if r.endswith("_computation") else r, callee) for r, callee in called]
    return Instruction(
        name,
        text[end:opening].strip(),
        parse_shapes(text[:end]),
        tuple(_OPERAND.findall(literal)),
        literal,
        attributes,
        tuple(called),
    )


_PARENTHESES = re.compile(r"[()]")


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis opened at `opening` is closed."""
    depth = 0
    for found in _PARENTHESES.finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"Unbalanced parentheses in {text[:80]!r}.")


@functools.lru_cache(maxsize=65536)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
    sizes = tuple(int(x.strip(" <=")) for x in dims.split(",") if x.strip())
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype,
        sizes,
        tuple(int(x) for x in order.split(",") if x.isdigit()),
        tuple(int(x) for x in tile[1].split(",")) if tile else (),
        int(space[1]) if space else 0,
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype)[0]) if re.search(r"\d+", dtype) else 0
