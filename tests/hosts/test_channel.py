"""What hosts tell each other past their devices, between real sockets."""

import secrets
import socket

import pytest
from stores import Store, in_threads

from sr1_jax import hosts
from sr1_jax.hosts import channel, sockets


@pytest.fixture
def make_ends():
    """Function that opens the channel of so many processes, beside `strangers`."""

    def make(processes, strangers=()):
        store = Store()
        opened = in_threads(
            lambda: channel._Hub(store, processes, "localhost"),
            *(lambda stranger=stranger: stranger(store) for stranger in strangers),
            *(lambda i=i: channel._Spoke(store, i) for i in range(1, processes)),
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
    def port_of(store):
        return int(store.blocking_key_value_get(f"{sockets._KEY}/channel", 5000).split()[1])

    def stranger(store):
        with socket.create_connection(("localhost", port_of(store))) as connection:
            connection.sendall(b"\0" * 28)
            return connection.recv(1)

    def mute(store):
        socket.create_connection(("localhost", port_of(store))).close()

    ends = make_ends(2, strangers=(stranger, mute))
    got = in_threads(lambda: ends[0].exchange(b"a"), lambda: ends[1].exchange(b"b"))
    assert got == [[b"a", b"b"]] * 2


def test_a_process_that_is_gone_is_named(make_ends):
    hub, spoke, gone = make_ends(3)
    gone._hub.close()
    says, _ = in_threads(
        lambda: hub.exchange(b"a"), lambda: spoke._hub.send(channel._HEAD.pack(1, 1) + b"b")
    )
    assert isinstance(says, RuntimeError) and "process 2 closed its channel" in str(says)


def test_processes_out_of_step_are_told(make_ends):
    hub, spoke = make_ends(2)
    in_threads(lambda: hub.exchange(b"a"), lambda: spoke.exchange(b"b"))
    says, _ = in_threads(
        lambda: hub.exchange(b"a"), lambda: spoke._hub.send(channel._HEAD.pack(7, 1) + b"b")
    )
    assert "number 1 tells of exchange 7, process 0 of 2" in str(says)


def test_a_port_that_cannot_be_reached():
    store = Store()
    sockets.Port(store, "channel", "localhost").close()
    with pytest.raises(RuntimeError, match=r"cannot reach another process at localhost, port"):
        channel._Spoke(store, 1)


def test_one_process_hears_itself():
    assert hosts.exchange(b"alone") == [b"alone"]


def test_the_address_on_the_way_to_the_coordinator():
    assert sockets.own_address("127.0.0.1:8476") == "127.0.0.1"
    assert sockets.own_address("localhost:1") in ("127.0.0.1", "::1")
