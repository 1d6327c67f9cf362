"""What hosts tell each other past their devices, between real sockets."""

import secrets
import socket
import threading

import pytest

from sr1_jax import host_channel


class Store:
    """The key-value store of JAX's coordination service."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, milliseconds / 1000)
            return self._values[key]


def in_threads(*functions):
    """What each function returns, or the exception that it raises."""
    results = [None] * len(functions)

    def call(i):
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.fixture
def make_ends():
    """Function that opens the channel of so many processes, beside `strangers`."""

    def make(processes, strangers=()):
        store = Store()
        opened = in_threads(
            lambda: host_channel._Hub(store, processes),
            *(lambda stranger=stranger: stranger(store) for stranger in strangers),
            *(
                lambda i=i: host_channel._Spoke(store, i, "localhost:1")
                for i in range(1, processes)
            ),
        )
        return [opened[0], *opened[1 + len(strangers) :]]

    return make


def test_everyone_gets_the_bytes_of_all_in_order(make_ends):
    ends = make_ends(4)
    sent = [[b"", b"one", secrets.token_bytes(3_000_000), b"\0" * i] for i in range(4)]
    for turn in range(3):
        parts = [mine[(turn + i) % 4] for i, mine in enumerate(sent)]
        got = in_threads(*(lambda e=e, p=p: e.exchange(p) for e, p in zip(ends, parts)))
        assert got == [parts] * 4


def test_a_stranger_is_not_let_in(make_ends):
    def stranger(store):
        port, _ = store.blocking_key_value_get(host_channel._ADDRESS, 5000).split()
        with socket.create_connection(("localhost", int(port))) as connection:
            connection.sendall(b"\0" * 28)
            return connection.recv(1)

    def mute(store):
        port, _ = store.blocking_key_value_get(host_channel._ADDRESS, 5000).split()
        socket.create_connection(("localhost", int(port))).close()

    ends = make_ends(2, strangers=(stranger, mute))
    got = in_threads(lambda: ends[0].exchange(b"a"), lambda: ends[1].exchange(b"b"))
    assert got == [[b"a", b"b"]] * 2


def test_a_process_that_is_gone_is_named(make_ends):
    hub, spoke, gone = make_ends(3)
    gone._hub.close()
    says, _ = in_threads(
        lambda: hub.exchange(b"a"),
        lambda: spoke._hub.sendall(
            host_channel._CALL.pack(1, 1) + host_channel._LENGTH.pack(1) + b"b"
        ),
    )
    assert isinstance(says, RuntimeError) and "process 2 closed its channel" in str(says)


def test_processes_out_of_step_are_told(make_ends):
    hub, spoke = make_ends(2)
    in_threads(lambda: hub.exchange(b"a"), lambda: spoke.exchange(b"b"))
    hub_says, _ = in_threads(
        lambda: hub.exchange(b"a"),
        lambda: spoke._hub.sendall(
            host_channel._CALL.pack(7, 1) + host_channel._LENGTH.pack(1) + b"b"
        ),
    )
    assert "number 1 tells of exchange 7, process 0 of 2" in str(hub_says)


def test_a_port_that_cannot_be_reached():
    store = Store()
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
    store.key_value_set(host_channel._ADDRESS, f"{port} {'00' * 16}")
    with pytest.raises(RuntimeError, match=r"process 1 cannot reach process 0 at localhost, port"):
        host_channel._Spoke(store, 1, "localhost:1")


def test_one_process_hears_itself():
    assert host_channel.exchange(b"alone") == [b"alone"]
