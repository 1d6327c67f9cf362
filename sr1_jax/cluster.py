"""Several processes as one cluster: how they find each other, and how the end of one ends all.

Processes that compute together wait for each other, so one that fails would leave the others
waiting for ever. Whoever fails says so to JAX's coordination service, which runs in process 0; a
thread in every process asks it once a second, and ends its process with the message and the exit
code of the first that failed. A process that dies without a word is missed by the service's
heartbeats, or by the network.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import NamedTuple, NoReturn

import jax
from absl import flags

from sr1_jax.exit_codes import ExitCode
from sr1_jax.hosts.channel import coordination

# Of XLA's pools on CPUs. A collective, and a program that waits for the one before it, each hold a
# thread until the other processes come: with as many threads as a small host has cores, processes
# of several devices wait for each other for good when something else keeps the cores busy.
_CPU_THREADS = 32
# How often the watching thread asks; how long a failing process waits to be heard.
_WATCH_SECONDS = 1.0
_HEARD_SECONDS = 5.0
_FAILURE, _HEARD, _EXPECTED = "sr1_jax/failure", "sr1_jax/heard", "sr1_jax/expected"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that `join_by_flags` reads."""
    define = {"flag_values": values}
    flags.DEFINE_bool(
        "distributed", False, "One of several processes that find each other: a TPU pod.", **define
    )
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, where nothing finds it by itself.", **define
    )
    flags.DEFINE_integer("processes", 0, "With --coordinator: how many there are.", **define)
    flags.DEFINE_integer("process", -1, "With --coordinator: which this is, from 0.", **define)
    flags.DEFINE_integer("join_seconds", 300, "How long processes wait for all to start.", **define)


def join_by_flags(values: flags.FlagValues) -> None:
    """Joins the cluster that the flags name, if they name one: see `join`."""
    if values.distributed or values.coordinator:
        join(values.coordinator, values.processes, values.process, wait_seconds=values.join_seconds)
    elif values.processes or values.process != -1:
        raise ValueError("--processes and --process need --coordinator=HOST:PORT of process 0.")


def join(
    coordinator: str = "", processes: int = 0, process: int = -1, *, wait_seconds: int = 300
) -> None:
    """Makes this process one of a cluster; called before anything else uses JAX.

    On CPU, processes talk by gloo. All but process 0 stop printing to stdout.

    Args:
        coordinator: "HOST:PORT" of process 0; "" where JAX finds the cluster by itself, as it
            does on Cloud TPU, GKE, Slurm and with Open MPI.
        processes: how many there are; with a coordinator only.
        process: which this is, 0 to processes - 1; with a coordinator only.
        wait_seconds: how long to wait for the others. When it is over, the process ends with a
            message and the code of transient trouble. Where they disagree on `processes`, all end
            with that of bad input.

    Raises:
        ValueError: settings that are incomplete or out of range.
        RuntimeError: there is no cluster to be found, or JAX has been used already.
    """
    _check(coordinator, processes, process, wait_seconds)
    where = f"{processes} at {coordinator}" if coordinator else "all of the cluster"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, _CPU_THREADS)))
    # It would swallow SIGTERM, which the training loop takes care of.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX itself would abort with a stack trace; it gets longer than our own message.
    late = threading.Timer(
        wait_seconds,
        _end,
        [
            f"error: this process waited {wait_seconds} s for the others ({where}). Were all "
            "started, with the same --coordinator and --processes and each with its own --process, "
            "and can they reach that port? --join_seconds sets how long to wait.",
            ExitCode.TRANSIENT,
        ],
    )
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes or None,
            process if coordinator else None,
            # With everything given there is nothing to find.
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=wait_seconds + 60,
        )
    except ValueError as error:
        raise RuntimeError(
            f"No cluster is found here ({error}). Outside of one that JAX knows, give "
            "--coordinator=HOST:PORT, --processes=N and --process=I."
        ) from error
    finally:
        late.cancel()
    _check_count()
    if coordination().process_id:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 to the end of the process
    watch = threading.Event()
    thread = threading.Thread(target=_watch, args=(watch,), name="sr1_jax cluster", daemon=True)
    thread.start()
    # Before JAX's own shut-down, which it registered first: the thread uses its client.
    atexit.register(lambda: (watch.set(), thread.join()))


def is_first() -> bool:
    """Whether this is process 0: the one that prints and writes files."""
    return jax.process_index() == 0


def joined() -> bool:
    """Whether this process belongs to a cluster."""
    return jax.distributed.is_initialized()


def processes() -> int:
    """How many processes the cluster has; 1 without one. Starts no backend of JAX."""
    return coordination().num_processes or 1


class _Failure(NamedTuple):
    """What the cluster knows of the failure that ends it: that of the process that was first."""

    process: int
    code: int
    message: str

    def told(self) -> str:
        return f"{self.process} {self.code} {self.message}"

    @classmethod
    def read(cls, told: str) -> _Failure:
        process, code, message = told.split(" ", 2)
        return cls(int(process), int(code), message)


def fail(message: str, code: int) -> NoReturn:
    """Ends the process after a failure, and with it all others of the cluster.

    Args:
        message: said by every process.
        code: that all end with; where another process has failed before, all end with its code.
    """
    _fail(message, code, coordination().num_processes)


def _fail(message: str, code: int, processes: int) -> NoReturn:
    state = coordination()
    print(f"error: process {state.process_id}: {message}", file=sys.stderr, flush=True)
    try:
        state.client.key_value_set(_FAILURE, _Failure(state.process_id, code, message).told())
    except jax.errors.JaxRuntimeError:  # another was first, or the first process is gone
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            first = _Failure.read(state.client.key_value_try_get(_FAILURE))
            print(f"error: process {first.process} failed: {first.message}", file=sys.stderr)
            code = first.code
    _leave_together(processes, code)


def _watch(stop: threading.Event) -> None:
    state = coordination()
    while not stop.wait(_WATCH_SECONDS):
        try:
            first = _Failure.read(state.client.key_value_try_get(_FAILURE))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            _end(
                f"error: process 0 does not answer any more: {str(error).splitlines()[0]}",
                ExitCode.TRANSIENT,
            )
        if first.process == state.process_id:
            return
        text = f"error: process {first.process} failed: {first.message}"
        print(text, file=sys.stderr, flush=True)
        _leave_together(state.num_processes, first.code)


def _leave_together(processes: int, code: int) -> NoReturn:
    """Ends the process when all `processes` have heard of the failure, or some time has passed.

    Else those left would see a broken connection instead of the reason.
    """
    state = coordination()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        state.client.key_value_set(f"{_HEARD}/{state.process_id}", "", allow_overwrite=True)
        until = time.monotonic() + _HEARD_SECONDS
        while time.monotonic() < until:
            if len(state.client.key_value_dir_get(_HEARD)) == processes:
                break
            time.sleep(_WATCH_SECONDS / 10)
        if state.process_id == 0:
            # The service goes with it, so it is the last.
            time.sleep(_WATCH_SECONDS / 2)
    # Not sys.exit: on its way out JAX would wait for the others, and they for this one.
    _end("", code)


def _end(message: str, code: int) -> NoReturn:
    """Ends the process at once, whatever its threads are waiting for."""
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _check(coordinator: str, processes: int, process: int, wait_seconds: int) -> None:
    if wait_seconds < 1:
        raise ValueError(f"--join_seconds must be at least 1, not {wait_seconds}.")
    if not coordinator:
        if processes or process != -1:
            raise ValueError("--processes and --process need --coordinator=HOST:PORT of process 0.")
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator must be HOST:PORT, not {coordinator!r}.")
    if processes < 1:
        raise ValueError(f"--coordinator needs --processes, at least 1, not {processes}.")
    if not 0 <= process < processes:
        raise ValueError(
            f"--coordinator needs --process, 0 to {processes - 1} with --processes={processes}, "
            f"not {process}."
        )


def _check_count() -> None:
    """Every process has to believe in the same number of processes as the first."""
    state = coordination()
    if state.process_id == 0:
        state.client.key_value_set(_EXPECTED, str(state.num_processes))
        return
    expected = state.client.blocking_key_value_get(_EXPECTED, 60_000)
    if int(expected) != state.num_processes:
        message = f"started with --processes={state.num_processes}, process 0 with {expected}."
        _fail(message, ExitCode.BAD_INPUT, int(expected))
