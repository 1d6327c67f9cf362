"""The mesh of devices, `data × fsdp × tensor`, also when it has one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from sr1_jax.sharding.axes import MESH_AXES


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what is left.

    Neighbours on an axis are neighbours in the network, as far as its shape allows. Of several
    TPU slices each holds an equal part of `data`: between slices nothing but gradients has
    to travel, once an update.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or `data` does not divide
            over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise ValueError(f"mesh {shape}: sizes are positive, and at most one is -1.")
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {len(devices)} devices: "
            "the sizes must multiply to that number."
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return Mesh(device_grid(shape, devices), MESH_AXES, axis_types=axis_types)


def device_grid(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the order of the mesh.

    Args:
        shape: sizes of data, fsdp and tensor.
        devices: as many as they multiply to. Where they name a slice, `slice_index`, fsdp and
            tensor stay within one; tensor also within a host, `process_index`, whose devices it
            divides: the hosts of the rollout engine share no slot.

    Raises:
        ValueError: `data` does not divide over the slices.
    """
    data, fsdp, tensor = shape
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Without splitting them, axes as long as 16 would not fit the four sides of a v5p cube.
    options = dict(allow_split_physical_axes=True)
    if slices == 1:
        return _tensor_on_hosts(mesh_utils.create_device_mesh(shape, devices, **options))
    if data % slices:
        raise ValueError(
            f"mesh data={data} does not divide over {slices} TPU slices: fsdp and tensor stay "
            f"within a slice, so make data a multiple of {slices}."
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, **options
    )
    return np.concatenate([_tensor_on_hosts(part) for part in np.split(grid, slices)])


def _tensor_on_hosts(grid: np.ndarray) -> np.ndarray:
    """The devices with each run along the last axis on one host, where that can be.

    A TPU host has a square of chips, and a run of four along a side of the slice would be on two
    hosts. Hosts follow each other row by row: back and forth would make each a neighbour of the
    next, but then the TPU compiler finds no routes for some collectives.
    """
    on_one = all(len({_host(d) for d in run}) == 1 for run in grid.reshape(-1, grid.shape[-1]))
    hosts: dict[int, list[Any]] = {}
    for device in sorted(grid.flat, key=lambda device: device.id):
        hosts.setdefault(_host(device), []).append(device)
    if on_one or any(len(local) % grid.shape[-1] for local in hosts.values()):
        return grid
    rows = sorted(hosts.values(), key=lambda local: min(tuple(d.coords)[::-1] for d in local))
    order = [device for local in rows for device in local]
    found = np.empty(len(order), object)
    found[:] = order
    return found.reshape(grid.shape)


def _host(device: Any) -> int:
    return getattr(device, "process_index", 0)
