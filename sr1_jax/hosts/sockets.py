"""Connections between the processes of a cluster: blocks of bytes over TCP.

A process listens on any free port. Where, and the token that it wants to be shown there, the others
learn from JAX's coordination service, which they have all joined.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any, TypeVar

from sr1_jax.exit_codes import ExitCode

_T = TypeVar("_T")
_LENGTH = struct.Struct(">Q")
_TOKEN_BYTES = 16
_CONNECT_SECONDS = 60
_GREET_SECONDS = 10
_KEY = "sr1_jax/hosts"


class Ended(RuntimeError):
    """The other end of a connection is gone."""

    exit_code = ExitCode.TRANSIENT


class Port:
    """A port of this process, on which others of its cluster may call.

    Args:
        store: the key-value store of JAX's coordination service.
        name: under which the others find it; one that no process uses twice.
        host: the address at which they reach this process.
    """

    def __init__(self, store: Any, name: str, host: str):
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        both = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=1024,
        )
        port = self._listener.getsockname()[1]
        store.key_value_set(f"{_KEY}/{name}", f"{host} {port} {self._token.hex()}")

    def accept(self, seconds: float | None = None) -> Connection:
        """The next connection whose other end shows the token; strangers are turned away.

        Raises:
            TimeoutError: none came within that time.
        """
        self._listener.settimeout(seconds)
        while True:
            accepted, _ = self._listener.accept()
            accepted.settimeout(_GREET_SECONDS)
            connection = Connection(accepted)
            try:
                welcome = hmac.compare_digest(connection._exactly(_TOKEN_BYTES), self._token)
            except Ended:
                welcome = False
            if welcome:
                accepted.settimeout(None)
                return connection
            accepted.close()

    def close(self) -> None:
        self._listener.close()


def connect(store: Any, name: str, seconds: float) -> Connection:
    """A connection to the port of that name, which another process opens or will open.

    Args:
        store, name: as for `Port`.
        seconds: to wait for it to be opened.

    Raises:
        RuntimeError: it cannot be reached.
    """
    host, port, token = store.blocking_key_value_get(f"{_KEY}/{name}", int(1000 * seconds)).split(
        " "
    )
    try:
        connected = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
    except OSError as error:
        raise RuntimeError(
            f"cannot reach another process at {host}, port {port} ({error}). The processes of a "
            "run talk to each other over ports that the system chooses: open all ports between "
            "their hosts."
        ) from error
    connected.settimeout(None)
    connected.sendall(bytes.fromhex(token))
    return Connection(connected)


class Connection:
    """One of the two ends of a connection; not for several threads at once.

    Args:
        connected: a socket.
    """

    def __init__(self, connected: socket.socket):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected

    def send(self, data: bytes) -> None:
        """Sends a block.

        Raises:
            Ended: the other end is gone.
        """
        try:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise Ended(f"{error}") from error

    def receive(self) -> bytes:
        """The next block, however long it takes to come.

        Raises:
            Ended: the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return self._exactly(length)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = self._socket.recv(min(size, 1 << 20))
            except OSError as error:
                raise Ended(f"{error}") from error
            if not part:
                raise Ended("the connection was closed")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def told_by(call: Callable[..., _T], *arguments: Any, gone: str) -> _T:
    """What a call of a `Connection` returns.

    Args:
        call: its `send` or `receive`.
        arguments: of the call.
        gone: what to say where its other end is.

    Raises:
        RuntimeError: it is gone.
    """
    try:
        return call(*arguments)
    except Ended as error:
        raise RuntimeError(gone) from error


def own_address(coordinator: str) -> str:
    """The address of this host on its way to the coordinator, "HOST:PORT": others reach it there.

    Nothing is sent to find out.
    """
    host, _, port = coordinator.rpartition(":")
    family, kind, protocol, _, there = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)
        return probe.getsockname()[0]
