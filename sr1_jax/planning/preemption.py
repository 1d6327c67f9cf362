"""What a preemption costs a run, and how often it should save.

A machine that is taken away says so shortly before (SIGTERM). The run then finishes its step and
saves, if that is done in time; if not, it goes on from the checkpoint before. With step seconds s,
seconds w until a checkpoint is written, notice n, seconds R to come back, mean time T between
preemptions and a pause c of training for each checkpoint, saving every I seconds loses the share

    ((1 - p) (I / 2 + w) + R) / T + c / I        with p = min(1, max(0, (n - w) / s))

of the time: p is the chance that the rest of a step, uniform in [0, s], leaves time to write, and a
checkpoint counts only when it is written (the reasoning of Young 1974, with a notice).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import jax

from sr1_jax.planning.run import CRITIC, OPTIMIZERS, POLICY, REFERENCE, Run, device_bytes

GB = 1e9
# Share of the time that is asked about: the longest interval at which no more is lost.
MOST_LOST = 0.03


class Cloud(NamedTuple):
    """What is assumed of the machines.

    Attributes:
        hours: between two preemptions, on average.
        notice: seconds from SIGTERM to the end.
        storage: bytes a second that a host writes to storage, or reads from it.
        copy: bytes a second that a host takes from its chips; training waits for that.
        start: seconds until a new run computes again, reading its state not counted: machines,
            Python, programs from the compilation cache.
    """

    hours: float = 4.0
    notice: float = 30.0
    storage: float = 1.0 * GB
    copy: float = 10.0 * GB
    start: float = 120.0

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: naming the flag.
        """
        for name, value in zip(self._fields, self):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"--preemption_{name} must be above 0, not {value}.")


USUAL = Cloud()


class Preemption(NamedTuple):
    """What a preemption costs a run.

    Attributes:
        cloud: what is assumed.
        bytes: of a checkpoint.
        most_written, most_read: bytes of the host that writes, and reads, the most of it.
        base: bytes that a host reads of the base weights, for the reference policy.
        step: seconds of a training step.
    """

    cloud: Cloud
    bytes: int
    most_written: int
    most_read: int
    base: float
    step: float

    @property
    def write(self) -> float:
        """Seconds until a checkpoint is written, in the background."""
        return self.most_written / self.cloud.storage

    @property
    def pause(self) -> float:
        """Seconds that training waits for each checkpoint."""
        return self.most_written / self.cloud.copy

    @property
    def comeback(self) -> float:
        """Seconds from the end of a run until its successor trains."""
        return self.cloud.start + (self.most_read + self.base) / self.cloud.storage

    @property
    def saved_in_time(self) -> float:
        """The chance that a run saves before it ends."""
        return min(1.0, max(0.0, (self.cloud.notice - self.write) / self.step))

    def loss(self, interval: float) -> float:
        """The share of the time that is lost when it saves every `interval` seconds."""
        between = 3600 * self.cloud.hours
        unsaved = 1 - self.saved_in_time
        redone = unsaved * (interval / 2 + self.write)
        saving = self.pause / interval if math.isfinite(interval) else 0.0
        return ((redone if unsaved else 0.0) + self.comeback) / between + saving

    def best_interval(self) -> float:
        """Seconds between checkpoints that lose the least; infinite where each is saved in time."""
        between, unsaved = 3600 * self.cloud.hours, 1 - self.saved_in_time
        return math.sqrt(2 * between * self.pause / unsaved) if unsaved else math.inf

    def longest_interval(self, most: float) -> float | None:
        """The longest interval, in seconds, at which the loss is at most `most`; None where there
        is none, infinite where every interval will do from some on."""
        between, unsaved = 3600 * self.cloud.hours, 1 - self.saved_in_time
        # (1-p)/(2T) I² - room I + c <= 0.
        room = most - (unsaved * self.write + self.comeback) / between
        if room <= 0:
            return None
        if not unsaved:
            return math.inf
        a = unsaved / (2 * between)
        inside = room**2 - 4 * a * self.pause
        return None if inside < 0 else (room + math.sqrt(inside)) / (2 * a)


def preemption(run: Run, step: float, cloud: Cloud) -> Preemption:
    """What a preemption costs a run whose steps take `step` seconds."""
    written, read = host_bytes(_saved(run))
    base = jax.tree.leaves(run.resident[REFERENCE])
    hosts = len(read)
    return Preemption(
        cloud,
        bytes=sum(written.values()),
        most_written=max(written.values()),
        most_read=max(read.values()),
        base=sum(leaf.size * leaf.dtype.itemsize for leaf in base) / hosts,
        step=step,
    )


def held_at_resumption(run: Run) -> int:
    """Bytes a device holds, at most, while a run is taken up again: first the weights that it
    starts from and the reference made of them, then the state that takes their place, with the
    reference. An update holds the latter and its own besides."""
    state = sum(device_bytes(tree) for tree in _saved(run))
    return device_bytes(run.resident[REFERENCE]) + max(device_bytes(run.resident[POLICY]), state)


def as_values(cost: Preemption) -> dict[str, Any]:
    """All of it as plain values; an interval without bound, or that there is none of, is None."""
    best, longest = cost.best_interval(), cost.longest_interval(MOST_LOST)
    return {
        "assumed": cost.cloud._asdict(),
        "checkpoint_bytes": cost.bytes,
        "most_written_by_a_host": cost.most_written,
        "write_seconds": cost.write,
        "pause_seconds": cost.pause,
        "comeback_seconds": cost.comeback,
        "saved_in_time": cost.saved_in_time,
        "best_interval_seconds": best if math.isfinite(best) else None,
        "loss_at_best_interval": cost.loss(best),
        "longest_interval_seconds": longest if longest and math.isfinite(longest) else None,
        "reaches": longest is not None,
        "most_lost": MOST_LOST,
    }


def _saved(run: Run) -> list[Any]:
    """What a checkpoint holds."""
    names = (POLICY, OPTIMIZERS[POLICY], CRITIC, OPTIMIZERS[CRITIC])
    return [run.resident[name] for name in names if name in run.resident]


def host_bytes(tree: Any) -> tuple[Counter[int], Counter[int]]:
    """Bytes of a tree of shapes with shardings that each host writes, and reads.

    A part that several devices hold is written once, by the host of the first of them, and read
    once by every host that needs it.

    Returns:
        Bytes by process.
    """
    written: Counter[int] = Counter()
    read: Counter[int] = Counter()
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        hosts: dict[Any, list[int]] = {}
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            part = tuple(piece.indices(n) for piece, n in zip(index, leaf.shape))
            hosts.setdefault(part, []).append(device.process_index)
        for of_part in hosts.values():
            written[of_part[0]] += size
            for host in set(of_part):
                read[host] += size
    return written, read
