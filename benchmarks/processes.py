"""A benchmark that runs in several processes of one cluster, on this machine."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys

from sr1_jax import cluster


def define(parser: argparse.ArgumentParser) -> None:
    """Adds the flags --processes, and --process and --port, which a process is given."""
    for name, default in dict(processes=1, process=-1, port=0).items():
        parser.add_argument(f"--{name}", type=int, default=default)


def joined(args: argparse.Namespace) -> bool:
    """Whether this process is to do the work: alone, or as one of several, whose cluster it joins.

    Else it has run this very command in several processes, the first of which prints.
    """
    if args.processes == 1:
        return True
    if args.process < 0:
        _start(args.processes)
        return False
    cluster.join(f"127.0.0.1:{args.port}", args.processes, args.process)
    return True


def _start(count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = [
        subprocess.Popen([sys.executable, *sys.argv, f"--port={port}", f"--process={process}"])
        for process in range(count)
    ]
    if any([process.wait() for process in running]):
        sys.exit("a process failed")
