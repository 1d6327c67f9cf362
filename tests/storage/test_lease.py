"""Who may work in a folder of a bucket."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sr1_jax.storage import lease as lease_module
from sr1_jax.storage import objects
from sr1_jax.storage.lease import LEASE, Lease, LeaseLost

HOLDER = """
import sys, time
from sr1_jax.storage.lease import Lease
with Lease(sys.argv[1], "--workdir", renew_seconds=0.2):
    print("held", flush=True)
    time.sleep(600)
"""
QUICK = dict(renew_seconds=0.2, dead_seconds=1.5)


@pytest.fixture
def holder(bucket):
    """Another process that holds the lease of the folder."""
    command = [sys.executable, "-c", HOLDER, bucket.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(bucket, holder):
    message = rf"--workdir=.* is in use by process {holder.pid} on host .*: two runs"
    for _ in range(2):
        lease = Lease(bucket.folder, "--workdir", renew_seconds=0.2, dead_seconds=30)
        with pytest.raises(ValueError, match=message), lease:
            pass


def test_a_dead_run_of_this_machine_is_followed_at_once(bucket, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with Lease(bucket.folder, "--workdir", dead_seconds=600) as lease:
        assert time.monotonic() - began < 5
        lease.check()


def test_a_dead_run_of_another_machine_is_followed_soon(bucket, holder, monkeypatch, capsys):
    monkeypatch.setattr(lease_module, "_machine", lambda: "another")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with Lease(bucket.folder, "--workdir", **QUICK):
        assert 1.5 <= time.monotonic() - began < 6
    assert f"was in use by process {holder.pid}" in capsys.readouterr().out
    assert LEASE not in objects.listing(bucket.folder)
    assert lease_module.DEAD_SECONDS < 60 and lease_module.RENEW_SECONDS * 4 < 60


def test_a_run_that_ends_lets_go(bucket):
    for _ in range(2):
        with pytest.raises(KeyError), Lease(bucket.folder, "--workdir"):
            raise KeyError


def test_of_two_that_follow_one_succeeds(bucket, monkeypatch):
    """Both saw the same dead holder."""
    objects.write(f"{bucket.folder}/{LEASE}", b'{"holder": "process 7 on host x"}')
    first, second = (Lease(bucket.folder, "--workdir", **QUICK) for _ in range(2))
    read = second._read
    monkeypatch.setattr(second, "_read", lambda: (_let_in(first), read())[1])
    entered = []

    def _let_in(other):
        if not entered and time.monotonic() > end:
            entered.append(other.__enter__())

    end = time.monotonic() + 0.5
    with pytest.raises(ValueError, match="is in use by"), second:
        pass
    entered[0].check()
    entered[0].__exit__(None, None, None)


def test_a_run_that_was_followed_notices(bucket):
    """One that was stopped for longer than any living one is silent."""
    with Lease(bucket.folder, "--workdir", renew_seconds=600, dead_seconds=0.2) as old:
        old.check()
        stored = objects.stat(f"{bucket.folder}/{LEASE}")
        other = b'{"holder": "process 7 on host x", "run": "other"}'
        objects.write(f"{bucket.folder}/{LEASE}", other, stored.generation)
        time.sleep(0.2)
        with pytest.raises(LeaseLost, match="process 7 on host x has taken over"):
            old.check()
    assert objects.read(f"{bucket.folder}/{LEASE}") == other


def test_answers_that_are_lost_cost_no_lease(bucket, no_pauses):
    bucket.fail_at_random(seed=1, share=0.3, faults=("lost_answer", "refused", "cut_answer"))
    with Lease(bucket.folder, "--workdir", renew_seconds=0.05, dead_seconds=0.1) as lease:
        for _ in range(10):
            time.sleep(0.06)
            lease.check()
    assert len(bucket.faults) > 5


def test_a_dead_process_is_known_by_more_than_its_number():
    me = lease_module._this_process()
    assert not lease_module._is_dead(me) and me["process"] == str(os.getpid())
    assert lease_module._is_dead(me | {"began": "1"})
    assert not lease_module._is_dead(me | {"began": "1", "machine": "another"})
    assert not lease_module._is_dead({})
