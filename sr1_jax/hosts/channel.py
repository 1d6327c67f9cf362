"""A few bytes of every process for all, from host to host.

A collective on the devices waits behind every program that was dispatched before it, so whoever
agrees by one on what to dispatch next has first to wait for what it dispatched last. Here process 0
collects what the others say over TCP, and sends all of it to each.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import jax

from sr1_jax.hosts.sockets import Connection, Port, connect, own_address, told_by

_NAME = "channel"
_GONE = "process {} closed its channel: it ended without a word."
_HEAD = struct.Struct(">QI")  # number of the exchange, process
_LENGTH = struct.Struct(">Q")
# How long a process may take to come here, once the cluster stands; others say so if it does not.
_OPEN_SECONDS = 600


def exchange(data: bytes) -> list[bytes]:
    """Everyone's `data`, by process; all processes must call this in the same order.

    Waits for the last of them, and for no program of a device. Meant for what is small: all of it
    passes through process 0.

    Raises:
        RuntimeError: a process is gone, or made another number of calls.
    """
    if jax.process_count() == 1:
        return [data]
    return _channel().exchange(data)


@functools.cache
def _channel() -> _Hub | _Spoke:
    state = coordination()
    if state.process_id == 0:
        return _Hub(state.client, state.num_processes, own_address(state.coordinator_address))
    return _Spoke(state.client, state.process_id)


def coordination() -> Any:
    """JAX's coordination service as this process sees it: client, process_id, num_processes,
    coordinator_address. Starts no backend, unlike `jax.process_index()`."""
    # JAX shows it to nobody, but Orbax and others take it from here as well.
    from jax._src import distributed

    return distributed.global_state


class _Hub:
    """The end of process 0.

    Args:
        store: of JAX's coordination service.
        processes: how many there are.
        host: the address of this one.
    """

    def __init__(self, store: Any, processes: int, host: str):
        self._calls = 0
        self._others: dict[int, Connection] = {}
        port = Port(store, _NAME, host)
        while len(self._others) < processes - 1:
            try:
                other = port.accept(_OPEN_SECONDS)
            except TimeoutError as error:
                missing = sorted(set(range(1, processes)) - self._others.keys())
                raise RuntimeError(
                    f"processes {missing} did not call process 0 within {_OPEN_SECONDS} s."
                ) from error
            _, process = _HEAD.unpack(other.receive())
            self._others[process] = other
        port.close()

    def exchange(self, data: bytes) -> list[bytes]:
        self._calls += 1
        parts = [data]
        for process, other in sorted(self._others.items()):
            told = told_by(other.receive, gone=_GONE.format(process))
            call, _ = _HEAD.unpack_from(told)
            if call != self._calls:
                raise RuntimeError(
                    f"the processes are out of step: number {process} tells of exchange {call}, "
                    f"process 0 of {self._calls}. Were all started with the same code?"
                )
            parts.append(told[_HEAD.size :])
        everything = _joined(parts)
        for process, other in self._others.items():
            told_by(other.send, everything, gone=_GONE.format(process))
        return parts


class _Spoke:
    """The end of any other process.

    Args:
        store: of JAX's coordination service.
        process: which this is.
    """

    def __init__(self, store: Any, process: int):
        self._process, self._calls = process, 0
        self._hub = connect(store, _NAME, _OPEN_SECONDS)
        self._hub.send(_HEAD.pack(0, process))

    def exchange(self, data: bytes) -> list[bytes]:
        self._calls += 1
        head = _HEAD.pack(self._calls, self._process)
        told_by(self._hub.send, head + data, gone=_GONE.format(0))
        return _split(told_by(self._hub.receive, gone=_GONE.format(0)))


def _joined(parts: Sequence[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def _split(everything: bytes) -> list[bytes]:
    rest, parts = memoryview(everything), []
    while rest:
        (length,) = _LENGTH.unpack_from(rest)
        end = _LENGTH.size + length
        parts.append(bytes(rest[_LENGTH.size : end]))
        rest = rest[end:]
    return parts
