"""Chips: what a device of each kind can do.

Sources, read in 2026: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" of
https://docs.cloud.google.com/tpu/docs for peak rates and bandwidths. Memory is what the
compiler grants a program (the "available HBM" of its error E1000), a little less than is built in.
A link's bandwidth is that of the chip, both directions, over twice its ports. Clocks follow from
the peak: multiply-adds a cycle are 128 x 128 (v6e and TPU7x: 256 x 256) a matrix unit, of which
a core has four.
"""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device as JAX counts them.

    Attributes:
        name: as in names of topologies.
        memory: bytes that programs may use.
        flops: bfloat16 matrix FLOPs a second.
        bandwidth: bytes a second between memory and core.
        link: bytes a second and direction over one link to a neighbour.
        clock: cycles a second.
        per_chip: devices of a chip.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    clock: float
    per_chip: int = 1

    @property
    def ring(self) -> float:
        """Bytes a second that a device sends in a collective: one ring, both directions."""
        return 2 * self.link


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.5 * GIB, 275e12, 1228e9, 50e9, 1.05e9),
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 50e9, 1.5e9),
        Chip("v5p", 95.73 * GIB, 459e12, 2765e9, 100e9, 1.75e9),
        Chip("v6e", 31.24 * GIB, 918e12, 1640e9, 100e9, 1.75e9),
        Chip("tpu7x", 94.74 * GIB, 2307e12 / 2, 7380e9 / 2, 100e9 / 2, 2.2e9, per_chip=2),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:8x8".

    Raises:
        ValueError: there is no such chip, or the name is not of that form.
    """
    name, colon, shape = topology.partition(":")
    if name not in CHIPS:
        raise ValueError(
            f"topology {topology!r}: the chip must be one of {', '.join(CHIPS)}, as in v5e:8x8."
        )
    sizes = shape.split("x")
    flat = name in ("v5e", "v6e")
    if not colon or len(sizes) != (2 if flat else 3) or not all(s.isdigit() for s in sizes):
        raise ValueError(
            f"topology {topology!r}: {name} slices are written "
            f"{f'{name}:8x8' if flat else f'{name}:2x2x4'}, chips along each side."
        )
    return CHIPS[name]


# What JAX calls a device, in small letters, and its chip; of GPUs the dense bfloat16 rates that
# their data sheets give.
_KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "tpu7x": "tpu7x",
}
_GPU_FLOPS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 matrix FLOPs a second of a device, by what JAX calls it; None where that is not
    known here, as of a CPU."""
    kind = device_kind.lower()
    if kind in _KINDS:
        return CHIPS[_KINDS[kind]].flops
    return next((flops for name, flops in _GPU_FLOPS.items() if name in kind), None)
