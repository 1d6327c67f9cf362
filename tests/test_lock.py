"""The lock on a workdir."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from sr1_jax.lock import LOCK_FILE, lock_workdir

HOLDER = """
import sys, time
from pathlib import Path
from sr1_jax.lock import lock_workdir
with lock_workdir(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the test's folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path, holder):
    message = rf"in use by process {holder.pid} on host {socket.gethostname()}: .* --workdir"
    for _ in range(2):  # the refused one takes nothing away
        with pytest.raises(ValueError, match=message), lock_workdir(tmp_path):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with lock_workdir(tmp_path):
        text = (tmp_path / LOCK_FILE).read_text()
        assert text == f"process {os.getpid()} on host {socket.gethostname()}\n"


def test_a_run_that_raised_lets_go(tmp_path):
    with pytest.raises(KeyError), lock_workdir(tmp_path / "a" / "b"):
        raise KeyError
    with lock_workdir(tmp_path / "a" / "b"):
        pass


def test_the_holder_is_printed_without_control_characters(tmp_path):
    with open(tmp_path / LOCK_FILE, "w") as file:
        file.write("\x1b[2Jme\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"in use by \[2Jme:"), lock_workdir(tmp_path):
            pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_workdir(tmp_path):
        pass
    assert "knows no locks (No locks available)" in capsys.readouterr().err
