"""The largest buffers of a compiled program, and those with a vocabulary axis."""

from __future__ import annotations

import re
from typing import NamedTuple

from sr1_jax.planning.hlo import HOST_MEMORY, Shape, parse_shapes

_VALUE = re.compile(r"^\s*value: <\d+ ([^\s>]+).*?\(size=(\d+),offset=\d+\): (.*)$")
_ALLOCATION = re.compile(r"^allocation \d+: size \d+(.*)$")


class Buffer(NamedTuple):
    """A value with a place in memory.

    Attributes:
        name: of the instruction.
        bytes: of the place.
        shape: of the value.
        argument: it is (part of) an argument of the program.
    """

    name: str
    bytes: int
    shape: Shape
    argument: bool


def read_buffers(text: str) -> list[Buffer]:
    """All values of a buffer assignment, as XLA writes it down, the largest first."""
    found, argument = [], False
    for line in text.splitlines():
        if allocation := _ALLOCATION.match(line):
            argument = "parameter" in allocation[1]
        elif value := _VALUE.match(line):
            shapes = parse_shapes(value[3])
            if len(shapes) == 1 and shapes[0].space != HOST_MEMORY:
                found.append(Buffer(value[1], int(value[2]), shapes[0], argument))
    return sorted(found, key=lambda buffer: -buffer.bytes)


def largest_with_vocabulary(
    buffers: list[Buffer], vocab_size: int, width: int, parts: int
) -> Buffer | None:
    """The largest value the program makes that has the vocabulary, or a device's share of it, for
    an axis beside tokens.

    Weights and their gradients have the model's width, or a share of it, for the other axis and
    do not count.

    Args:
        buffers: of `read_buffers`.
        vocab_size: V.
        width: D.
        parts: devices; either axis is split over a divisor of them.
    """
    shares = [part for part in range(1, parts + 1) if parts % part == 0]
    vocabulary = {-(-vocab_size // part) for part in shares}
    widths = {-(-width // part) for part in shares}
    for buffer in buffers:
        others = [size for size in buffer.shape.dims if size > 1]
        found = [size for size in others if size in vocabulary]
        if buffer.argument or not found:
            continue
        others.remove(found[0])
        if others and not (len(others) == 1 and others[0] in widths):
            return buffer
    return None
