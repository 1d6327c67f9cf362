"""What the processes of a cluster tell each other from host to host, past their devices.

A collective on the devices waits behind every program that was dispatched before it, so whoever
agrees by one on what to dispatch next has first to wait for what it dispatched last. Here process 0
collects a few bytes of every process over TCP and sends all of them to each. It listens on any free
port, which the others learn from JAX's coordination service, as they do the token to show there.
"""

from __future__ import annotations

import functools
import hmac
import secrets
import socket
import struct
from typing import Any

import jax

_ADDRESS = "sr1_jax/host_channel"
_LENGTH = struct.Struct(">Q")
_CALL = struct.Struct(">QI")  # number of the exchange, process
_TOKEN_BYTES = 16
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
    from jax._src import distributed  # as in cluster.py

    state = distributed.global_state
    if jax.process_index() == 0:
        return _Hub(state.client, state.num_processes)
    return _Spoke(state.client, state.process_id, state.coordinator_address)


class _Hub:
    """The end of process 0.

    Args:
        client: of JAX's coordination service.
        processes: how many there are.
    """

    def __init__(self, client: Any, processes: int):
        self._calls = 0
        token = secrets.token_bytes(_TOKEN_BYTES)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=both, backlog=processes
        )
        with listener:
            client.key_value_set(_ADDRESS, f"{listener.getsockname()[1]} {token.hex()}")
            listener.settimeout(_OPEN_SECONDS)
            self._spokes: dict[int, socket.socket] = {}
            while len(self._spokes) < processes - 1:
                try:
                    spoke, _ = listener.accept()
                except TimeoutError as error:
                    missing = sorted(set(range(1, processes)) - self._spokes.keys())
                    raise RuntimeError(
                        f"processes {missing} did not open their channel to process 0 within "
                        f"{_OPEN_SECONDS} s."
                    ) from error
                process = _greeted(spoke, token)
                if process is None:
                    spoke.close()  # a stranger that found the port
                    continue
                self._spokes[process] = spoke

    def exchange(self, data: bytes) -> list[bytes]:
        self._calls += 1
        parts = [data]
        for process, spoke in sorted(self._spokes.items()):
            call, _ = _CALL.unpack(_received(spoke, _CALL.size, process))
            if call != self._calls:
                raise RuntimeError(
                    f"the processes are out of step: number {process} tells of exchange {call}, "
                    f"process 0 of {self._calls}. Were all started with the same code?"
                )
            parts.append(_received_block(spoke, process))
        everything = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        message = _LENGTH.pack(len(everything)) + everything
        for process, spoke in self._spokes.items():
            _send(spoke, message, process)
        return parts


class _Spoke:
    """The end of any other process.

    Args:
        client: of JAX's coordination service.
        process: which this is.
        coordinator: "HOST:PORT" of process 0.
    """

    def __init__(self, client: Any, process: int, coordinator: str):
        self._process, self._calls = process, 0
        told = client.blocking_key_value_get(_ADDRESS, _OPEN_SECONDS * 1000)
        port, token = told.split(" ")
        host = coordinator.rpartition(":")[0].strip("[]")
        try:
            self._hub = socket.create_connection((host, int(port)), timeout=60)
        except OSError as error:
            raise RuntimeError(
                f"process {process} cannot reach process 0 at {host}, port {port} ({error}). "
                "Processes talk to it over two ports, the coordinator's and a free one that "
                "the system chooses: open all ports between them."
            ) from error
        self._hub.settimeout(None)
        self._hub.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _send(self._hub, bytes.fromhex(token) + _CALL.pack(0, process), 0)

    def exchange(self, data: bytes) -> list[bytes]:
        self._calls += 1
        head = _CALL.pack(self._calls, self._process) + _LENGTH.pack(len(data))
        _send(self._hub, head + data, 0)
        everything, parts = memoryview(_received_block(self._hub, 0)), []
        while everything:
            (length,) = _LENGTH.unpack_from(everything)
            end = _LENGTH.size + length
            parts.append(bytes(everything[_LENGTH.size : end]))
            everything = everything[end:]
        return parts


def _greeted(spoke: socket.socket, token: bytes) -> int | None:
    """Which process shows the token on a new connection; None if it is none of ours."""
    spoke.settimeout(10)
    try:
        shown = _received(spoke, _TOKEN_BYTES, -1)
        _, process = _CALL.unpack(_received(spoke, _CALL.size, -1))
    except RuntimeError:
        return None
    if not hmac.compare_digest(shown, token):
        return None
    spoke.settimeout(None)
    spoke.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return process


def _send(connection: socket.socket, data: bytes, process: int) -> None:
    try:
        connection.sendall(data)
    except OSError as error:
        raise _gone(process) from error


def _received_block(connection: socket.socket, process: int) -> bytes:
    (length,) = _LENGTH.unpack(_received(connection, _LENGTH.size, process))
    return _received(connection, length, process)


def _received(connection: socket.socket, size: int, process: int) -> bytes:
    parts = []
    while size:
        try:
            part = connection.recv(min(size, 1 << 20))
        except OSError as error:
            raise _gone(process) from error
        if not part:
            raise _gone(process)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _gone(process: int) -> RuntimeError:
    return RuntimeError(f"process {process} closed its channel: it ended without a word.")
