"""What the processes of a run agree on after each step, so that all go on or none does."""

from __future__ import annotations

import collections
import math
import resource
from collections.abc import Sequence
from typing import NamedTuple

import jax

from sr1_jax.agreement import gather

# What backends tell of a device, in bytes, by what it is called here.
_DEVICE_STATS = {
    "device": "bytes_in_use",
    "device_peak": "peak_bytes_in_use",
    "device_limit": "bytes_limit",
}


class Agreed(NamedTuple):
    """Equal in all processes.

    Attributes:
        metrics: of the first process; those of others may differ in their last bits.
        memory: of `memory_metrics`, of each kind of the process that has most.
        told_to_end: whether any process was.
        overdue: whether the first process finds that it is time to save.
    """

    metrics: dict[str, float]
    memory: dict[str, float]
    told_to_end: bool
    overdue: bool = False


def agree(metrics: dict[str, float], told_to_end: bool, overdue: bool = False) -> Agreed:
    """Brings together what each process has found; all have to call it."""
    said = gather((metrics, memory_metrics(jax.local_devices()), told_to_end, overdue))
    memory: dict[str, float] = {}
    for _, mine, *_ in said:
        memory |= {key: max(value, memory.get(key, 0.0)) for key, value in mine.items()}
    return Agreed(said[0][0], memory, any(told for _, _, told, _ in said), said[0][3])


def memory_metrics(devices: Sequence[jax.Device]) -> dict[str, float]:
    """Memory of this process in GiB, by kind.

    Args:
        devices: of this process.

    Returns:
        memory/peak_gib, largest resident memory of the process so far; where the backend tells,
        of the fullest device memory/device_gib (in use), memory/device_peak_gib and
        memory/device_limit_gib; and memory/arrays_<kind>_gib, arrays of this process by the kind
        of memory they are in, such as device or pinned_host, of all its devices together.
    """
    found = {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    stats = [told for device in devices if (told := device.memory_stats())]
    for name, key in _DEVICE_STATS.items():
        if values := [told[key] for told in stats if key in told]:
            found[f"memory/{name}_gib"] = max(values) / 2**30
    arrays: dict[str, int] = collections.Counter()
    for array in jax.live_arrays():
        if not array.is_deleted():
            size = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
            arrays[array.sharding.memory_kind] += size * len(array.sharding.addressable_devices)
    return found | {f"memory/arrays_{kind}_gib": size / 2**30 for kind, size in arrays.items()}
