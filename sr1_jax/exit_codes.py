"""With which code a program ends, and whether the same command may be given again.

What starts programs again decides by the code alone: `tpu_scripts/keep.sh`, and the JobSet that
`tpu_scripts/gke.sh` makes. Numbers from 64 to 78 are those of BSD's sysexits.h, where it has the
case; shells use 126 to 128 themselves, and 128 + n stands for signal n.

| code | name        | what happened                                                     | again |
|-----:|-------------|-------------------------------------------------------------------|-------|
|    0 | done        | all that was asked for is done                                    | no    |
|    1 |             | Python or the watchdog ended the process, outside of our reach    | yes   |
|    2 | bad input   | a setting, a flag, a file, or something that is not installed     | no    |
|   70 | defect      | an error that nobody expected; its traceback is above the message | no    |
|   74 | storage     | a disk is full or read-only, or access is refused                 | no    |
|   75 | transient   | a process, the network, a bucket or a device went away            | yes   |
|   79 | diverged    | training was not finite or collapsed, as the guards are set       | no    |
|   80 | terminated  | told to end by SIGTERM; what there was to save is saved           | yes   |
|  130 | interrupted | Ctrl-C                                                            | no    |

Any other code is that of a signal or of the machine (out of memory, a lost host): again. What goes
on again and again is bounded by whoever restarts.
"""

from __future__ import annotations

import enum
import errno
import re
import sys


class ExitCode(enum.IntEnum):
    """See the table above."""

    DONE = 0
    BAD_INPUT = 2
    DEFECT = 70
    STORAGE = 74
    TRANSIENT = 75
    DIVERGED = 79
    TERMINATED = 80
    INTERRUPTED = 130


# After these the same command would end the same way.
FINAL = frozenset(ExitCode) - {ExitCode.TRANSIENT, ExitCode.TERMINATED}

_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# Network, network file systems, and mounts whose server went away.
_TRANSIENT_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.EIO, errno.ENETDOWN,
    errno.ENETRESET, errno.ENETUNREACH, errno.ENOBUFS, errno.ENOTCONN, errno.EPIPE,
    errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
# Errors of libraries that talk to a server, when they are neither ours nor Python's.
_NETWORK_LIBRARIES = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
# What those servers answer when asking again may help (RFC 9110, section 15).
_TRANSIENT_STATUS = {408, 425, 429, *range(500, 600)}
# What tensorstore says of an error of the system, whatever code of google.rpc it makes of it.
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
# How errors of JAX, tensorstore and gRPC begin: the names of google.rpc.Code.
_RPC_CODE = re.compile(r"\s*([A-Z][A-Z_]+):")
# How JAX tells that a platform has no devices; a plain RuntimeError.
_NO_BACKEND = re.compile(r"Unable to initialize backend '\w+': ([A-Z_]+):")
_TRANSIENT_RPC = {"ABORTED", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL",
                  "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"}  # fmt: skip


def code_of(error: BaseException) -> int:
    """The code of a program that ends by an error.

    An error may carry its own in an attribute `exit_code`. One that reports another (`raise … from
    …`) has the code of that one where that is transient, or of storage: a tool that fails since its
    server is away, or a checkpoint since the disk is full, does not make the input bad.
    """
    own = getattr(error, "exit_code", None)
    if own is not None:
        return int(own)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, InterruptedError):  # before OSError, of which it is one
        return ExitCode.TERMINATED
    if isinstance(error, FloatingPointError):
        return ExitCode.DIVERGED
    if _system_errno(error) in _STORAGE_ERRNOS:
        return ExitCode.STORAGE
    if _is_transient(error) or _is_late_device(error):
        return ExitCode.TRANSIENT
    cause = error.__cause__
    if cause is not None and code_of(cause) in (ExitCode.TRANSIENT, ExitCode.STORAGE):
        return ExitCode(code_of(cause))
    if is_of_devices(error):
        return ExitCode.DEFECT  # memory that does not suffice, a program that does not compile
    expected = isinstance(error, (ValueError, OSError, RuntimeError))
    return ExitCode.BAD_INPUT if expected else ExitCode.DEFECT


def _system_errno(error: BaseException) -> int | None:
    """The number of the system's error that this one is, or tells of."""
    if isinstance(error, OSError):
        return error.errno
    told = _SYSTEM_ERROR.search(str(error))
    return int(told[1]) if told else None


def is_of_devices(error: BaseException) -> bool:
    """Whether JAX raised it, of a device, its compiler or the network between processes."""
    # Searches by words import this module, and need no JAX.
    errors = sys.modules.get("jax.errors")
    return errors is not None and isinstance(error, errors.JaxRuntimeError)


def _is_late_device(error: BaseException) -> bool:
    """Whether devices were not there yet when JAX looked for them, as those of a process that is
    ending, or of a slice that is forming, are not."""
    told = _NO_BACKEND.match(str(error)) if isinstance(error, RuntimeError) else None
    return told is not None and told[1] in _TRANSIENT_RPC


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed at another time."""
    rpc = _RPC_CODE.match(str(error))
    if is_of_devices(error):
        # Of the devices' memory: it will not suffice the next time either.
        return rpc is None or rpc[1] in _TRANSIENT_RPC - {"RESOURCE_EXHAUSTED"}
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _TRANSIENT_ERRNOS
    if type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES:
        status = next((v for v in _statuses(error) if isinstance(v, int)), None)
        return status is None or status in _TRANSIENT_STATUS
    # Tensorstore raises ValueError of all of them.
    return isinstance(error, ValueError) and rpc is not None and rpc[1] in _TRANSIENT_RPC


def _statuses(error: BaseException):
    """Where those libraries keep the HTTP status of an answer."""
    response = getattr(error, "response", None)
    yield from (getattr(error, name, None) for name in ("status", "code"))
    yield getattr(response, "status_code", None)
