"""Runs a command and keeps all it prints in a folder or a bucket, where it outlives the machine.

    python -m sr1_jax.logged --folder=gs://bucket/runs/x/logs -- python -m sr1_jax.train …

What the command prints is shown as well. It goes to FOLDER/HOST-TIME.N.log every --seconds and at
the end, N counting up when a file is full. A folder that cannot be written is told and tried
again; the command goes on. SIGTERM and SIGINT are handed on, and the exit code is that of the
command, or 128 + n where signal n ended it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath

from sr1_jax import cli
from sr1_jax.paths import replacing

_PART_BYTES = 16 << 20  # what is uploaded again and again should stay small
_LAST_TRIES, _PAUSE_SECONDS = 3, 2.0
# How long output is waited for that children of the command may still write.
_DRAIN_SECONDS = 5.0


class KeptLog:
    """What a command printed, in files of a folder; written by one thread, uploaded by another.

    Args:
        folder: local, or of a bucket; made if need be.
        name: files are NAME.0.log, NAME.1.log, …
        part_bytes: after which the next is begun.
    """

    def __init__(self, folder: str, name: str, part_bytes: int = _PART_BYTES):
        self._folder, self._name, self._part_bytes = folder, name, part_bytes
        self._lock = threading.Lock()
        self._parts, self._uploaded = [bytearray()], [0]
        self._complained = False

    def write(self, chunk: bytes) -> None:
        with self._lock:
            self._parts[-1] += chunk
            if len(self._parts[-1]) >= self._part_bytes:
                self._parts.append(bytearray())
                self._uploaded.append(0)

    def upload(self) -> bool:
        """Writes what is new to the folder; whether all is there now."""
        with self._lock:
            pending = [
                (number, bytes(part))
                for number, (part, done) in enumerate(zip(self._parts, self._uploaded))
                if part is not None and len(part) > done
            ]
        for number, content in pending:
            try:
                self._write_whole(f"{self._name}.{number}.log", content)
            # Of a bucket any error of its library. The command must not suffer.
            except Exception as error:
                if not self._complained:
                    cli.notice(f"the log cannot be kept in {self._folder}, for now: {error!r}")
                self._complained = True
                return False
            with self._lock:
                self._uploaded[number] = len(content)
                # Full and kept, unless more came while it was written.
                if number < len(self._parts) - 1 and len(self._parts[number]) == len(content):
                    self._parts[number] = None
        return True

    def _write_whole(self, name: str, content: bytes) -> None:
        folder = epath.Path(self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        if "://" in self._folder:  # objects of a bucket are whole
            (folder / name).write_bytes(content)
            return
        with replacing(Path(folder) / name) as temporary:
            temporary.write_bytes(content)


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("folder", None, "For the log, also gs://….", **define)
    flags.DEFINE_float("seconds", 60.0, "Between uploads.", lower_bound=0.01, **define)
    command = cli.parse(values, argv, required=("folder",), usage=__doc__, positional=True)
    if not command:
        raise ValueError("there is no command: give one after the flags and --.")
    name = f"{socket.gethostname()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    sys.exit(run_logged(command, KeptLog(values.folder, name), values.seconds))


def run_logged(command: Sequence[str], log: KeptLog, seconds: float) -> int:
    """Runs a command to its end, keeping its output; returns its exit code.

    Args:
        command: program and arguments.
        log: that it goes to, and to stdout.
        seconds: between uploads.
    """
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be run ({error.strerror}).") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    pump = threading.Thread(target=_pump, args=(child.stdout.fileno(), log), daemon=True)
    pump.start()
    ended = threading.Event()
    uploads = threading.Thread(target=_upload_on_a_clock, args=(log, seconds, ended), daemon=True)
    uploads.start()
    code = child.wait()
    pump.join(_DRAIN_SECONDS)
    ended.set()
    uploads.join()
    return code if code >= 0 else 128 - code


def _pump(source: int, log: KeptLog) -> None:
    while chunk := os.read(source, 1 << 16):
        log.write(chunk)
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _upload_on_a_clock(log: KeptLog, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds):
        log.upload()
    for _ in range(_LAST_TRIES):
        if log.upload():
            return
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    cli.run(main)
